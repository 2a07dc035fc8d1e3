"""Data sets of the `datasets` package: folders, splits, class labels, and the Hub out of reach."""

from pathlib import Path

import pytest

from actcache.data.formats import read_samples
from actcache.errors import RowError
from tests.support.processes import run_code

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

PAIRS = {"prompt": ["a", "b"], "positive": [" Yes", " No"], "negative": [" No", " Yes"]}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def message(path):
    with pytest.raises(RowError) as caught:
        read_samples([path])
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_with_one_data_set_is_read():
    datasets.Dataset.from_dict(PAIRS).save_to_disk("mood")
    samples = read_samples(["mood"])
    assert [(s.id, s.letter, s.source) for s in samples] == [
        ("mood/0", "Yes", "mood:0"),
        ("mood/1", "No", "mood:1"),
    ]


def test_a_folder_with_splits_gives_train_unless_another_is_named():
    parts = {
        "train": datasets.Dataset.from_dict(PAIRS),
        "test": datasets.Dataset.from_dict({key: values[:1] for key, values in PAIRS.items()}),
    }
    datasets.DatasetDict(parts).save_to_disk("mood")
    assert len(read_samples(["mood/"])) == 2
    (sample,) = read_samples(["mood:test"])
    assert sample.id == "mood/0"


def test_the_objects_of_steering_bench_are_read():
    row = {"prompt": "a", "response": "(A)"}
    rows = [{"positive": row, "negative": row | {"response": "(B)"}}]
    datasets.Dataset.from_list(rows).save_to_disk("mood")
    assert [(s.prompt, s.positive, s.negative) for s in read_samples(["mood"])] == [
        ("a", "(A)", "(B)")
    ]


def test_class_labels_are_read_by_their_names():
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["glad", "sad"])}
    )
    dataset = datasets.Dataset.from_dict({"prompt": ["a", "b"], "label": [1, 0]}, features=features)
    dataset.save_to_disk("mood")
    assert [sample.label for sample in read_samples(["mood"])] == ["sad", "glad"]


def test_a_class_label_of_minus_one_is_missing():
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["glad", "sad"])}
    )
    dataset = datasets.Dataset.from_dict(
        {"prompt": ["a", "b"], "label": [1, -1]}, features=features
    )
    dataset.save_to_disk("mood")
    assert message("mood") == (
        "'mood' row 1 (from 0): 'label' is missing, expected text. Add it, or drop the row."
    )


def test_a_null_in_a_column_is_missing():
    datasets.Dataset.from_dict(PAIRS | {"positive": ["c", None]}).save_to_disk("mood")
    assert message("mood") == (
        "'mood' row 1 (from 0): 'positive' is missing, expected text. Add it, or drop the row."
    )


def test_a_missing_split_is_named_with_the_existing_ones():
    datasets.DatasetDict({"dev": datasets.Dataset.from_dict(PAIRS)}).save_to_disk("mood")
    assert message("mood") == (
        "'mood' has no split 'train', only dev. Pass --split with one of them, or 'mood:SPLIT'."
    )


def test_a_split_of_a_data_set_without_splits_is_named():
    datasets.Dataset.from_dict(PAIRS).save_to_disk("mood")
    assert message("mood:test") == (
        "'mood' is one data set without splits. Drop --split, or ':test'."
    )


def test_a_damaged_data_set_is_named():
    datasets.Dataset.from_dict(PAIRS).save_to_disk("mood")
    Path("mood/state.json").write_text("{")
    assert message("mood").startswith("'mood' cannot be read as a data set (")
    assert message("mood").endswith("). Save it again.")


@pytest.mark.parametrize(
    ("path", "name", "split"),
    [
        ("no-such-org/no-such-set", "no-such-org/no-such-set", "train"),
        ("no-such-org/no-such-set:test", "no-such-org/no-such-set", "test"),
        ("no-such-set", "no-such-set", "train"),
    ],
)
def test_a_hub_that_is_out_of_reach_gives_one_line(path, name, split):
    # tests/conftest.py sets HF_HUB_OFFLINE
    text = message(path)
    assert text.startswith(
        f"no file at '{name}', and no data set of that name on the Hub with a split '{split}' ("
    )
    assert text.endswith("). Check path, name and network, or pass a local file.")


@pytest.mark.parametrize(
    ("path", "name", "split"),
    [
        ("org/mood", "org/mood", "train"),
        ("org/mood:test", "org/mood", "test"),
        ("mood", "mood", "train"),
        ("mood:dev", "mood", "dev"),
    ],
)
def test_a_data_set_of_the_hub_is_requested_by_name_and_split(monkeypatch, path, name, split):
    # the one place where the network is replaced: what is requested, and what the answer becomes
    requests = []

    def load_dataset(name, *, split):
        requests.append((name, split))
        return datasets.Dataset.from_dict(PAIRS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    samples = read_samples([path])
    assert requests == [(name, split)]
    assert [(s.id, s.source) for s in samples] == [("mood/0", "mood:0"), ("mood/1", "mood:1")]


def test_an_error_shows_its_first_line_or_its_type(monkeypatch):
    for error, shown in ((OSError("\nfirst\nsecond"), "(first)"), (OSError(), "(OSError)")):

        def load_dataset(name, *, split, error=error):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert shown in message("org/mood")


def test_without_the_package_the_remedy_is_named():
    code = (
        "import sys; sys.modules['datasets'] = None\n"  # Python's own way to block an import
        "from actcache.data.formats import read_samples\n"
        "from actcache.errors import RowError\n"
        "try: read_samples(['org/name'])\n"
        "except RowError as error: print(error)"
    )
    assert run_code(code).stdout.strip() == (
        "'org/name' needs the package 'datasets', which is not installed. Install it with: "
        "pip install datasets, or pass a .jsonl file."
    )
