"""Loading models: the bundled one, folders, the hub's names, and everything that must be refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spectrobook.making.neox import Architecture, initial_weights, window_losses
from spectrolib.model import loading
from spectrolib.model.loading import LanguageModel, load_model, load_weights
from spectrolib.text.corpus import BUNDLED, bundled_windows

MICRO = Architecture(layers=2, heads=2, width=16, mlp=32, vocabulary=50, context=64)


@pytest.fixture
def folder(tmp_path):
    """A model folder with small random weights, without a tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps(MICRO.config()))
    save_file(
        {k: v.half() for k, v in initial_weights(MICRO, 0).items()}, tmp_path / "model.safetensors", metadata={"a": "b"}
    )
    return tmp_path


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return load_model(device="cpu")


# The bundled model


def test_bundled_model(bundled):
    assert bundled.name == "bundled" and bundled.path == BUNDLED and bundled.revision is None
    assert not bundled.model.training and not any(p.requires_grad for p in bundled.model.parameters())
    assert {p.dtype for p in bundled.model.parameters()} == {torch.float32}
    assert len(bundled.tokenizer) == 4096 and bundled.tokenizer.eos_token_id == 0
    assert bundled.model.get_output_embeddings().weight.shape == (4096, 128)


def test_bundled_body_is_that_of_pythia_14m():
    """The values of EleutherAI/pythia-14m's config.json; only the vocabulary is another."""
    config = json.loads((BUNDLED / "config.json").read_text())
    pythia = {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_act": "gelu",
        "hidden_size": 128,
        "intermediate_size": 512,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
    }
    assert {k: config[k] for k in pythia} == pythia
    assert config["vocab_size"] == 4096


def test_bundled_loss_is_what_the_card_says(bundled):
    stated = json.loads((BUNDLED / "training.json").read_text())["loss"]["heldout"]
    card = (BUNDLED / "README.md").read_text()
    heldout = bundled_windows("heldout")
    for domain in ("python", "licences", "locales"):
        part = heldout.take(np.flatnonzero(heldout.domain == domain)[:8]).ids.astype(np.int64)
        ids = torch.from_numpy(part)
        logits = bundled.model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        every = heldout.take(np.flatnonzero(heldout.domain == domain)).ids.astype(np.int64)
        ours = window_losses(load_weights(BUNDLED)[1], torch.from_numpy(every), Architecture())
        assert ours[:8].mean().item() == pytest.approx(loss, abs=1e-4)
        assert ours.mean().item() == pytest.approx(stated[domain], abs=1e-3)
        assert f"{stated[domain]:.3f} |" in card


def test_bundled_model_has_learned(bundled):
    stated = json.loads((BUNDLED / "training.json").read_text())
    assert stated["finished"]
    assert stated["loss"]["heldout"]["mean"] < 3.5  # a uniform guess is 8.3
    prompt = bundled.tokenizer(">>> import numpy as", return_tensors="pt")
    found = bundled.model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert bundled.tokenizer.decode(found[0]).endswith("import numpy as np")


def test_bundled_folder_is_small_and_complete():
    """The model's own files, in the hub's format; measurements of it lie beside them."""
    own = "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json"
    own += " windows.npz training.json README.md"
    assert sum((BUNDLED / name).stat().st_size for name in own.split()) < 8e6


# Loading


def test_modules_and_weights_agree(folder):
    model = load_model(folder, device="cpu")
    config, weights = load_weights(folder)
    assert config == MICRO.config() and model.tokenizer is None
    renamed = {k.replace("lm_head", "embed_out"): p for k, p in model.model.named_parameters()}
    assert set(renamed) == set(weights)
    assert all(torch.equal(renamed[k], weights[k]) and weights[k].dtype == torch.float32 for k in weights)


def test_dtype(folder):
    assert load_model(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_shards_buffers_and_new_names(folder):
    wanted = load_weights(folder)[1]
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    found = load_weights(folder)[1]
    assert list(found) == list(wanted) and all(torch.equal(found[n], wanted[n]) for n in wanted)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-2\.safetensors"):
        load_weights(folder)


def test_hash_depends_on_weights_and_configuration(folder, tmp_path):
    first = load_model(folder, device="cpu")
    assert first.hash == load_model(folder, device="cpu", dtype="bfloat16").hash
    in_memory = LanguageModel(first.model, None, "in memory")
    assert len(in_memory.hash) == 64
    tensors = load_file(folder / "model.safetensors")
    tensors["embed_out.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    changed = load_model(folder, device="cpu")
    assert changed.hash != first.hash
    assert LanguageModel(changed.model, None, "in memory").hash != in_memory.hash
    configure(folder, layer_norm_eps=1e-6)
    assert load_model(folder, device="cpu").hash not in (first.hash, changed.hash)


def test_workers_need_no_transformers(folder):
    """Importing transformers costs each worker seconds and 200 MB."""
    code = "import sys; from spectrolib.model.loading import load_weights; load_weights(sys.argv[1]); "
    code += "sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


# What must be refused


def both_refuse(folder, message):
    with pytest.raises(ValueError, match=message):
        load_weights(folder)
    with pytest.raises(ValueError, match=message):
        load_model(folder, device="cpu")


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for part in (content[:-10], content[:100], content[:4], b""):
        file.write_bytes(part)
        both_refuse(folder, "truncated")
    file.write_bytes((5).to_bytes(8, "little") + b"hello" + content)
    both_refuse(folder, "header cannot be read")
    file.write_bytes(content + b"more")
    both_refuse(folder, "truncated or damaged")


def test_weights_that_are_not_safetensors(folder):
    (folder / "model.safetensors").unlink()
    both_refuse(folder, r"no safetensors weights .* found none")
    torch.save({}, folder / "pytorch_model.bin")
    both_refuse(folder, r"only pytorch_model\.bin, which is not read")


def test_other_families(folder):
    configure(folder, model_type="bloom")
    both_refuse(folder, r"'bloom' is not supported.*'gpt_neox'")
    configure(folder, model_type="llama")
    both_refuse(folder, "rotary_emb_base is 10000 in the configuration of a 'llama': that is not supported")
    configure(folder, use_parallel_residual=None, rotary_pct=None, rotary_emb_base=None)
    both_refuse(folder, r"lack the tensor model\.embed_tokens\.weight: the file does not match its config\.json")


def test_unsupported_kinds_of_gpt_neox(folder):
    configure(folder, attention_bias=False)
    both_refuse(folder, "attention_bias is false")


def test_weights_that_do_not_match_the_configuration(folder):
    configure(folder, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"lack the tensor gpt_neox\.layers\.2"):
        load_weights(folder)
    configure(folder, num_hidden_layers=2, intermediate_size=64)
    with pytest.raises(ValueError, match=r"has shape \(32, 16\), its config.json says \(64, 16\)"):
        load_weights(folder)


def test_folders_without_a_usable_configuration(folder):
    (folder / "config.json").write_text("{")
    both_refuse(folder, "not valid JSON")
    (folder / "config.json").unlink()
    both_refuse(folder, r"no config\.json")


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a/b/c", "", "../x"])
def test_no_such_folder(name):
    with pytest.raises(ValueError, match=r"no model folder .*EleutherAI/pythia-14m"):
        load_model(name)


def test_a_folder_is_the_same_by_any_name(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    names = [folder, f"{folder}/", folder.name, f"./{folder.name}", f"{folder}/../{folder.name}"]
    assert {load_model(name, device="cpu").name for name in names} == {str(folder.resolve())}
    with pytest.raises(ValueError, match=r"revision 'main' is of models on the hub, and .* is a local one"):
        load_model(folder, revision="main")


@pytest.mark.parametrize("name", ["models/tipo", "models/deep/tipo", "./tipo", "models/tipo/", "~/tipo"])
def test_what_looks_like_a_path_is_no_question_to_the_hub(tmp_path, monkeypatch, name):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "deep").mkdir(parents=True)
    with pytest.raises(ValueError, match="no model folder"):
        load_model(name)


def test_unknown_device_and_dtype():
    with pytest.raises(ValueError, match="unknown dtype 'float8'"):
        load_model(dtype="float8")
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        load_model(device="abacus")


DENSE, NORM = "gpt_neox.layers.1.attention.dense.weight", "gpt_neox.final_layer_norm.weight"


def rewrite(folder, change):
    """The weights with one change."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"embed_out.weight": t["embed_out.weight"].to(torch.int8)}), "embed_out.weight .* as I8"),
        (lambda t: t.update({NORM: t[NORM].to(torch.uint8)}), f"{NORM} .* is stored as U8: quantised"),
        (lambda t: t.update({DENSE: t[DENSE].to(torch.float8_e4m3fn)}), f"{DENSE} .* is stored as F8_E4M3"),
        (lambda t: t.update({f"{DENSE}_scale": torch.ones(16)}), f"holds a tensor {DENSE}_scale, which a model of"),
        (lambda t: t.update({"lm_head.bias": torch.ones(50)}), "holds a tensor gpt_neox.lm_head.bias"),
        (lambda t: t.update({"gpt_neox.layers.2.mlp.dense_4h_to_h.bias": torch.ones(16)}), "holds a tensor .*layers.2"),
        (lambda t: t.update({"lm_head.weight": t["embed_out.weight"].clone()}), "embed_out.weight twice, as .* and as"),
        (lambda t: t[DENSE].view(-1)[3:4].fill_(torch.nan), f"{DENSE} in .* holds NaN or infinity"),
        (lambda t: t[NORM].fill_(torch.inf), f"{NORM} in .* holds NaN or infinity"),
    ],
)
def test_every_tensor_is_used_or_refused_by_name(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        _ = load_model(folder, device="cpu").weights
    with pytest.raises(ValueError, match=message):
        load_weights(folder)


def test_buffers_of_older_files_are_let_by(folder):
    buffers = {"attention.bias": torch.ones(1, 1, 4, 4).bool(), "attention.rotary_emb.inv_freq": torch.ones(2)}
    rewrite(folder, lambda t: t.update({f"gpt_neox.layers.0.{name}": value for name, value in buffers.items()}))
    assert set(load_weights(folder)[1]) == set(initial_weights(MICRO, 0))


def test_a_file_that_contradicts_tied_embeddings(folder):
    configure(folder, tie_word_embeddings=True)
    both_refuse(
        folder, r"tie_word_embeddings is true .*, but embed_out\.weight differs from gpt_neox\.embed_in\.weight"
    )
    rewrite(folder, lambda t: t.update({"embed_out.weight": t["gpt_neox.embed_in.weight"].clone()}))
    assert "embed_out.weight" not in load_weights(folder)[1]


def test_weights_in_memory_are_judged_as_files_are(tiny_gpt_neox):
    import copy

    module = copy.deepcopy(tiny_gpt_neox)
    module.register_parameter("scale", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(ValueError, match=r"model 'mine' holds a tensor gpt_neox\.scale"):
        _ = LanguageModel(module, None, "mine").weights
    module = copy.deepcopy(tiny_gpt_neox)
    module.gpt_neox.final_layer_norm.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"final_layer_norm\.bias in model 'mine' holds NaN"):
        _ = LanguageModel(module, None, "mine").weights


def test_an_adapter_beside_the_weights(folder):
    (folder / "adapter_config.json").write_text("{}")
    both_refuse(folder, "holds an adapter")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "must hold a JSON object"),
        ("config.json", "null", "and holds null"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("config.json", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_files_that_are_not_what_is_meant(folder, name, content, message):
    (folder / name).write_text(content)
    both_refuse(folder, message)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "lacks 'weight_map'"),
        ([], "must hold a JSON object"),
        ({"weight_map": []}, "weight_map is .*must be an object"),
        ({"weight_map": {"a": 1}}, "a is 1 in weight_map"),
        ({"weight_map": {}}, "names no file"),
    ],
)
def test_an_index_that_is_not_one(folder, index, message):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    both_refuse(folder, message)


# The hub


def offer(monkeypatch, folder, calls):
    """A hub that has one model."""
    import huggingface_hub

    def config_file(name, file, revision=None):
        calls.append((name, file, revision))
        return str(folder / file)

    def snapshot(name, revision=None, **options):
        calls.append((name, "all", revision))
        assert "*.safetensors" in options["allow_patterns"] and not any("bin" in p for p in options["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", config_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def test_a_name_on_the_hub(folder, monkeypatch):
    calls = []
    offer(monkeypatch, folder, calls)
    found = load_model("someone/small", revision="step1000", device="cpu")
    assert (found.name, found.revision, found.path) == ("someone/small", "step1000", folder)
    assert calls == [("someone/small", "config.json", "step1000"), ("someone/small", "all", "step1000")]
    assert found.hash == load_model(folder, device="cpu").hash


def test_an_unsupported_model_is_refused_before_its_weights_are_fetched(folder, monkeypatch):
    calls = []
    offer(monkeypatch, folder, calls)
    configure(folder, model_type="bloom")
    with pytest.raises(ValueError, match="'bloom' is not supported"):
        load_model("bigscience/bloom-560m", device="cpu")
    assert [file for _, file, _ in calls] == ["config.json"]


@pytest.mark.parametrize("kind", ["network", "repository"])
def test_a_name_that_cannot_be_fetched(monkeypatch, kind):
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    def fail(*_, **__):
        raise OSError("no route") if kind == "network" else HFValidationError("bad name")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        ValueError, match=r"cannot get model 'no-one/nothing': no such folder .* give 'bundled'.*pythia-14m"
    ):
        load_model("no-one/nothing")


def test_the_name_bundled_is_not_a_folder_of_the_user(folder, monkeypatch):
    shutil.copytree(folder, folder / "bundled")
    monkeypatch.chdir(folder)
    assert loading.load_model("bundled", device="cpu").path == BUNDLED
