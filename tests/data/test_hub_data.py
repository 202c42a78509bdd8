"""Datasets of the Hugging Face Hub, without the Hub."""

import huggingface_hub
import pytest

from unistep.data import open_dataset


@pytest.fixture
def asked(monkeypatch, class_folder):
    """The Hub gives a folder of images; the list of its calls."""
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options["repo_type"], options["revision"], options["allow_patterns"]))
        return str(class_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_dataset_is_that_of_its_files(asked, pixels):
    dataset = open_dataset("hf://datasets/someone/pets@v1.0")
    assert len(dataset) == 6 and dataset.class_names == ["cat", "dog"]
    ((name, kind, revision, patterns),) = asked
    assert (name, kind, revision) == ("someone/pets", "dataset", "v1.0")
    assert {"*.parquet", "*.tar", "*.png"} <= set(patterns) and not any(one.endswith(".py") for one in patterns)


def test_a_folder_of_a_dataset(asked):
    assert len(open_dataset("hf://datasets/someone/pets/dog")) == 4
    assert "dog/*.png" in asked[0][3]


@pytest.mark.parametrize("source", ["hf://someone/pets", "hf://datasets/pets", "hf://datasets/a/b/../../c", "hf://"])
def test_other_names_are_refused(asked, refusal, source):
    refusal(lambda: open_dataset(source), "hf://datasets/OWNER/NAME")
    assert asked == []


def test_a_hub_that_is_not_there_is_one_line(monkeypatch, refusal):
    def snapshot_download(name, **options):
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    refusal(lambda: open_dataset("hf://datasets/a/b"), "cannot be fetched from the Hub", "HF_TOKEN", "by other means")
