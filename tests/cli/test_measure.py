"""`spectro measure`: what it prints, its one-line errors, Ctrl-C."""

import json
import re
import shutil
import time

import pytest
from commands import SPECTRO, refused, refused_after_plan, spectro
from measuring import files, wait_for
from processes import press_ctrl_c, started
from typer.testing import CliRunner

from spectrolib import cli
from spectrolib.model.engine import TOKENS_PER_PASS
from spectrolib.run import profiles
from spectrolib.run.store import open_result


def test_measure_then_info(folder, text, small, tmp_path):
    command = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--draws", 8, "--seed", 5)
    code, out, error = spectro(*command, "--components", "l0h0, l1 mlp", "--workers", 1, "--gamma", 200, "--chains", 4)
    assert code == 0, error
    assert re.search(r"^components +l0h0, l1 mlp, and the whole model; estimator two_chain$", out, re.M)
    assert re.search(r"^windows +6 to sample from, 2 for L\(w\), 3 to probe, of 9 tokens: 24 probe tokens$", out, re.M)
    assert re.search(r"^probe text +(code|prose|verse) \d", out, re.M)
    assert re.search(r"^posterior +nβ 10, γ 200; SGLD, step size 0.0013, batch 4$", out, re.M)
    assert re.search(r"^chains +4 x 8 draws, .*; seed 5$", out, re.M)
    assert re.search(r"^time +about .* on 1 cores?$", out, re.M)
    assert re.search(r"^result +.*run/result.zarr: 24 tokens x 2 components$", out.replace("\n  ", ""), re.M)
    assert re.search(r"^reliability +columns median -?\d", out, re.M)
    assert "task 12 of 12: layer1.chain3" in error
    result = open_result(tmp_path / "run")
    assert result["text"].values.tolist() == [text.replace("Ġ", " ") for text in result["text"].values.tolist()]
    assert all(len(text) == 1 for text in result["text"].values)

    code, out, error = spectro("info", tmp_path / "run")
    assert (code, error) == (0, "")
    assert "12 of 12 tasks are done" in out
    assert re.search(r"gamma 200", out)
    for name in ("l0h0", "l1 mlp", "full"):
        assert re.search(rf"^ *{name} +-?\d", out, re.M), name
    assert "chains agree: below 1." in out
    smoke = profiles.get("smoke").settings
    relaxed = smoke.step_size * 200 / 2 * smoke.steps_between_draws
    assert re.search(rf"relaxed draws: {relaxed:.2g} x \(1.2 to 5;", out)


def test_a_repeated_command_goes_on(folder, text, small, tmp_path):
    command = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--components", "l0h0")
    assert spectro(*command)[0] == 0
    before = files(tmp_path / "run")
    (tmp_path / "run" / "tasks" / "full.chain1.npz").unlink()
    assert "3 of 4 tasks are done" in spectro("info", tmp_path / "run")[1]
    code, _, error = spectro(*command)
    assert code == 0
    assert error.startswith("task 1 of 1: full.chain1")
    assert files(tmp_path / "run") == before
    assert "settings.seed: there 0, here 1" in refused_after_plan(*command, "--seed", 1)


def test_a_dry_run_prints_the_plan_and_leaves_nothing(folder, text, small, tmp_path):
    code, out, _ = spectro("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--dry-run")
    assert code == 0
    assert "10 tasks" in out
    assert re.search(r"^on a card +\S+ s on one H200 in float32, assuming 33% of its limit; .* No card was", out, re.M)
    assert not (tmp_path / "run").exists()


def test_sizes_of_the_text_are_options(folder, text, small, tmp_path):
    run = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--dry-run")
    out = spectro(*run, "--length", 7, "--tokens", 31, "--windows", 4, "--batch", 3)[1]
    assert re.search(r"^windows +4 to sample from, 2 for L\(w\), 6 to probe, of 7 tokens: 36 probe tokens$", out, re.M)
    assert re.search(r"^posterior .*, batch 3$", out, re.M)


def test_the_laptop_profile_takes_gradients(folder, text, small, tmp_path):
    sizes = ("--length", 9, "--tokens", 24, "--windows", 4)
    run = ("measure", "--profile", "laptop", "--model", folder, "--text", text, "--out", tmp_path / "run", *sizes)
    code, out, error = spectro(*run, "--workers", 1)
    assert code == 0, error
    assert "a gradient of every token, no chains" in re.sub(r"\s+", " ", out) and "24 probe tokens" in out
    assert open_result(tmp_path / "run").attrs["first_order"] == 1


def test_shards_and_memory_are_planned_for(folder, text, small, tmp_path):
    run = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--components", "l0h0")
    code, out, _ = spectro(*run, "--dry-run", "--memory", "2GB")
    assert code == 0
    memory = re.search(r"^memory +about (\d+) MB a worker for the largest task: model [^:]*$", out, re.M)
    assert memory and 250 < int(memory[1]) < 300 and "process 250 MB" in out and "for the result" in out
    refusal = refused(*run, "--memory", "250MB")
    assert re.search(r"a worker needs at least 25\d MB of memory, more than 250 MB: model .*process 250 MB", refusal)
    assert "'lots' is no size of memory" in refused(*run, "--memory", "lots")
    assert "shards must be at least 1, got 0" in refused(*run, "--shards", 0)
    assert not (tmp_path / "run").exists()


def test_a_run_in_shards_says_how_far_it_is(folder, text, small, monkeypatch, tmp_path):
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 8)  # so that the three windows are three passes
    run = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--components", "l0h0")
    code, out, error = spectro(*run, "--shards", 2, "--workers", 1)
    assert code == 0, error
    steps = 2 * 2 * 2 * 2 * (6 + 2 * 3) * 4 * 8  # shards, sampled, chains, driven members; steps; a batch of 4 windows
    losses = 2 * 2 * 4 * 2 * (3 + 2 * 2) * 8  # sampled, chains, members, draws; windows, those for L(w) for each shard
    cost = (
        f"8 tasks in 2 shards, each of which repeats the chains; {steps:.3g} tokens through steps, {losses:.3g} token"
    )
    assert cost in re.sub(r"\s+", " ", out)
    assert re.search(r"task 8 of 8: \S+\.windows\d+-\d+", error)
    assert "4 of 4 tasks are done" in spectro("info", tmp_path / "run")[1]
    sorted((tmp_path / "run" / "tasks").glob("full.chain1.*"))[0].unlink()
    assert "3 of 4 tasks are done, 1 in part" in spectro("info", tmp_path / "run")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "huge"), "unknown profile 'huge': it must be one of smoke, book, laptop, paper"),
        (("--estimator", "three"), "unknown estimator 'three': it must be one of two_chain, one_chain"),
        (("--draws", "0"), "draws must be an integer of at least 1, got 0"),
        (("--chains", "-1"), "chains must be an integer of at least 1, got -1"),
        (("--gamma", "0"), "gamma must be positive and finite, got 0.0"),
        (("--step-size", "nan"), "step_size must be positive and finite, got nan"),
        (("--nbeta", "-1"), "nbeta must be zero or positive, got -1.0"),
        (("--seed", "-1"), "seed must be an integer of at least 0, got -1"),
        (("--model", "no/such/model/anywhere"), "no model folder 'no/such/model/anywhere'"),
        (("--text", "no-such-file.txt"), "no such file or folder: no-such-file.txt"),
        (("--text", "a", "--data", "b"), "give --text or --data, not both"),
        (("--probe", "a", "--probe-data", "b"), "give --probe or --probe-data, not both"),
        (("--length", "1"), "length is 1: a run needs windows, of at least 2 tokens"),
        (("--windows", "0"), "sampling_windows is 0: a run needs windows"),
        (("--tokens", "many"), "'many' is no count"),
        (("--batch", "0"), "batch_size must be an integer of at least 1, got 0"),
        (("--device", "abacus"), "unknown device 'abacus'"),
        (("--device", "mps"), "device 'mps' is not supported: it must be 'auto', 'cpu', 'cuda'"),
        (("--device", "xpu", "--dry-run"), "device 'xpu' is not supported"),
        (("--device", "meta"), "device 'meta' is not supported"),
        (("--revision", "step1000"), "revision 'step1000' is of models on the hub, and 'bundled' is a local one"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    assert message in refused("measure", "--out", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_bad_components_windows_and_folders_are_one_line(folder, text, small, tmp_path):
    run = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run")
    assert "unknown component 'l7h0'" in refused(*run, "--components", "l0h0,l7h0")
    assert "named once each" in refused(*run, "--components", "l0h0,l0h0")
    short = tmp_path / "short.txt"
    short.write_text("too little")
    few = refused("measure", "--model", folder, "--text", short, "--out", tmp_path / "run")
    assert "the documents give 1 windows of 9 tokens, 11 were asked for" in few
    foreign = refused("measure", "--model", folder, "--out", tmp_path / "run")
    assert "is cut with the bundled model's tokenizer" in foreign and "--text FILE or FOLDER, or --data" in foreign
    assert not (tmp_path / "run").exists()
    below = ("measure", "--model", folder, "--text", text, "--out", short / "run")
    assert "short.txt/run cannot be written" in refused_after_plan(*below)
    others = ("measure", "--model", folder, "--text", text, "--out", text)
    assert "is not a run folder and not empty (it holds code)" in refused_after_plan(*others)
    assert "workers must be at least 1, got 0" in refused_after_plan(*run, "--workers", 0)


def test_a_single_draw_can_be_measured_and_looked_at(folder, text, small, tmp_path):
    run = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--components", "l0h0")
    code, _, error = spectro(*run, "--draws", 1, "--workers", 1)
    assert code == 0, error
    assert spectro("info", tmp_path / "run")[0] == 0


def test_files_that_are_left_out_are_counted_and_named(folder, text, small, tmp_path):
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "table.xlsx").write_bytes(b"PK")
    run = ("measure", "--model", folder, "--text", tmp_path / "text", "--out", tmp_path / "run", "--dry-run")
    out = re.sub(r"\s+", " ", spectro(*run)[1])
    assert f"left out of {tmp_path / 'text'}, where 3 files were read, 1: table.xlsx" in out


def test_a_chain_that_leaves_is_one_line(folder, text, small, tmp_path):
    run = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--components", "l0h0", "--plain")
    code, _, error = spectro(*run, "--step-size", 1e4, "--workers", 1)
    assert code == 1
    assert re.fullmatch(r"error: component \w+, chain \d, draw 0: the loss .* lower step_size .now 10000.*\n", error)


def test_ctrl_c_stops_keeps_finished_tasks_and_says_so(folder, text, tmp_path):
    lines = (text / "prose" / "book.txt").read_text().splitlines()
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"text": "\n".join(lines[i : i + 5])}) + "\n" for i in range(100)))
    tasks = tmp_path / "run" / "tasks"
    run = [*SPECTRO, "measure", "--model", folder, "--text", pages, "--out", tmp_path / "run", "--workers", "2"]
    run += ["--draws", "60"]
    with started(run) as process:
        wait_for(lambda: any(tasks.glob("*.chain?.npz")) or process.poll() is not None, "the first task", 240)
        press_ctrl_c(process)
        pressed = time.monotonic()
        out, error = process.communicate(timeout=120)
        assert time.monotonic() - pressed < 60
    done = len(list(tasks.glob("*.chain?.npz")))
    assert process.returncode == 130, error
    assert out.startswith("model ")
    *lines, last = error.splitlines()
    assert all(re.match(r"task \d+ of 10: ", line) for line in lines), error
    assert last == f"stopped; {done} of 10 tasks are done; the same command goes on"
    assert 1 <= done < 10


def test_another_text_from_the_command_line(tmp_path):
    """The bundled model: measured once, then another text is read on its draws, without a step."""
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(f"The loss of token {i} rises, and the head {i} answers. " * 60)
    common = ["measure", "--components", "l5h0", "--workers", "1", "--bank", str(tmp_path / "bank")]
    first = CliRunner().invoke(cli.app, [*common, "--out", str(tmp_path / "first")])
    assert first.exit_code == 0, first.output
    words = r"draws\s+kept in .*\s+in\s+all;\s+those\s+that\s+are\s+there\s+cost\s+no\s+steps"
    assert re.search(words, first.output, re.DOTALL)
    held = files(tmp_path / "bank")
    second = CliRunner().invoke(
        cli.app, [*common, "--out", str(tmp_path / "second"), "--probe", str(tmp_path / "text"), "--draws", "2"]
    )
    assert second.exit_code == 0, second.output
    assert files(tmp_path / "bank") == held
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("first", "second")]
    hashes = [[m["windows"][role]["hash"] for role in ("sampling", "loss", "probe")] for m in manifests]
    assert hashes[0][:2] == hashes[1][:2] and hashes[0][2] != hashes[1][2]


@pytest.fixture
def measured(folder, text, small, tmp_path):
    """A run with settings of its own."""
    run = tmp_path / "first"
    own = ("--gamma", 200, "--draws", 3, "--seed", 5, "--components", "l0h0, l1 mlp", "--channels", 4)
    command = ("measure", "--model", folder, "--text", text, "--probe", text / "code", "--out", run, *own)
    code, _, error = spectro(*command, "--estimator", "one_chain", "--workers", 1)
    assert code == 0, error
    return run


def test_like_measures_the_same_from_another_folder(measured, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, error = spectro("measure", "--like", measured, "--out", "again", "--workers", 1)
    assert code == 0, error
    assert re.search(r"^like +.*first$", out.replace("\n  ", ""), re.M)
    one, other = open_result(measured), open_result("again")
    assert one.identical(other)
    assert json.loads(one.attrs["manifest"]) == json.loads(other.attrs["manifest"])


def test_what_is_given_beside_like_goes_first(measured, text, tmp_path):
    run = ("measure", "--like", measured, "--out", tmp_path / "again", "--dry-run")
    out = spectro(*run, "--nbeta", 0, "--seed", 6, "--components", "embed", "--chains", 3)[1]
    assert "nβ 0, γ 200" in out and "3 x 3 draws" in out and "seed 6" in out
    assert re.search(r"^components +embed; estimator one_chain$", out, re.M)
    assert re.search(r"^probe text +code 3$", out, re.M)
    assert re.search(r"^probe text +verse 3$", spectro(*run, "--probe", text / "verse")[1], re.M)
    out = spectro(*run, "--tokens", 32, "--draws", 1)[1]
    assert "32 probe tokens" in out and "2 x 1 draws" in out


def test_like_refuses_what_has_changed(measured, text, folder, tmp_path):
    run = ("measure", "--like", measured, "--out", tmp_path / "again")
    assert "leave --profile out" in refused(*run, "--profile", "smoke")
    assert "no manifest.json" in refused("measure", "--like", tmp_path / "nowhere", "--out", tmp_path / "again")
    said = json.loads((measured / "manifest.json").read_text())
    for part, name, value, message in (
        ("model", "hash", "0" * 64, "is another one now"),
        ("windows", "loss", said["windows"]["loss"] | {"hash": "0" * 64}, "the loss windows cut from"),
        ("windows", "sampling", said["windows"]["sampling"] | {"source": str(tmp_path / "gone")}, "gone"),
    ):
        (measured / "manifest.json").write_text(json.dumps(said | {part: said[part] | {name: value}}))
        assert message in refused(*run)
    assert not (tmp_path / "again").exists()


def rows_of_text(place, text):
    """A folder in the hub's format: the documents of a folder of text, under another column than usual."""
    place.mkdir()
    rows = [json.dumps({"contents": book.read_text(), "domain": book.parent.name}) for book in text.glob("*/*.txt")]
    (place / "train.jsonl").write_text("\n".join(rows) + "\n")
    return place


def test_like_reads_a_local_data_set_again(folder, text, small, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    place = rows_of_text(tmp_path / "set", text)
    monkeypatch.chdir(tmp_path)
    own = ("--components", "l0h0", "--draws", 2, "--chains", 2, "--workers", 1)
    code, _, error = spectro("measure", "--model", folder, "--data", "set:contents", "--out", "first", *own)
    assert code == 0, error
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, error = spectro("measure", "--like", tmp_path / "first", "--out", "again", "--workers", 1)
    assert code == 0, error
    assert open_result(tmp_path / "first").identical(open_result("again"))
    place.rename(tmp_path / "moved")
    message = refused("measure", "--like", tmp_path / "first", "--out", "third")
    assert "set:contents" in message and "no such folder is here" in message


def test_like_asks_the_hub_for_the_data_set_again(folder, text, small, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    place, load, asked = rows_of_text(tmp_path / "set", text), datasets.load_dataset, []

    def hub(name, subset=None, **options):
        asked.append((name, subset))
        return load(str(place), **options)

    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")  # so that nothing is asked whether the hub answers
    monkeypatch.setattr(datasets, "load_dataset", hub)
    own = ("--components", "l0h0", "--draws", 2, "--chains", 2, "--data", "owner/name[part]:contents", "--workers", 1)
    code, _, error = spectro("measure", "--model", folder, *own, "--out", tmp_path / "first")
    assert code == 0, error
    assert spectro("measure", "--like", tmp_path / "first", "--out", tmp_path / "again", "--workers", 1)[0] == 0
    assert asked == [("owner/name", "part")] * 2
    assert open_result(tmp_path / "first").identical(open_result(tmp_path / "again"))


def test_text_that_stands_in_both_places_is_noticed(folder, text, small, tmp_path):
    run = ("measure", "--model", folder, "--out", tmp_path / "run", "--dry-run", "--length", 40)
    (tmp_path / "probe").mkdir()
    shutil.copy(text / "code" / "book.txt", tmp_path / "probe" / "copy.txt")
    out = " ".join(spectro(*run, "--text", text, "--probe", tmp_path / "probe")[1].split())
    assert (
        "1 documents" not in out and "one document of the probe text stands in the other text too (copy.txt:0)" in out
    )
    words = (text / "code" / "book.txt").read_text()
    (tmp_path / "probe" / "copy.txt").write_text("A little more. " + words)  # nearly the same
    out = " ".join(spectro(*run, "--text", text / "code", "--probe", tmp_path / "probe", "--windows", 300)[1].split())
    assert "of the probe text stand" not in out
    assert re.search(r"overlap \d of 3 probe windows hold 16 tokens in a row that stand in the windows to sample", out)
    assert "overlap" not in spectro(*run, "--text", text)[1]
