"""Random models of every family."""

import re

import torch
import transformers

SIZES = dict(vocab_size=53, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=28)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {
    "gpt2": ("GPT2", dict(vocab_size=53, n_embd=24, n_layer=2, n_head=4, n_positions=16)),
    "gpt2 untied": (
        "GPT2",
        dict(vocab_size=53, n_embd=24, n_layer=2, n_head=3, n_positions=16, n_inner=28, tie_word_embeddings=False),
    ),
    "llama": ("Llama", SIZES),
    "llama grouped, tied": ("Llama", SIZES | dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "llama with biases": ("Llama", SIZES | dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True)),
    "llama 3": ("Llama", SIZES | dict(num_key_value_heads=2, rope_parameters=LLAMA3)),
    "mistral": ("Mistral", SIZES | dict(num_key_value_heads=2, head_dim=10, sliding_window=64)),
    "qwen2": ("Qwen2", SIZES | dict(num_key_value_heads=2)),
    "qwen3": ("Qwen3", SIZES | dict(num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)),
    "gpt_neox in sequence": ("GPTNeoX", SIZES | dict(hidden_size=32, use_parallel_residual=False)),
    "gpt_neox tied": ("GPTNeoX", SIZES | dict(hidden_size=32, tie_word_embeddings=True)),
}


def random_model(kind, **changes):
    """A model whose every weight is random, norms and biases too."""
    family, config = KINDS[kind]
    config = config | changes
    config = getattr(transformers, f"{family}Config")(**{"pad_token_id": None, **config})
    model = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        centre = 1.0 if re.search(r"(norm|ln_.|layernorm)\.weight$", name) else 0.0
        parameter.data = centre + 0.25 * torch.randn(parameter.shape, generator=generator)
    return model
