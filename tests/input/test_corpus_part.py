import pytest

from cocu_jax.errors import UserError
from cocu_jax.input.corpus_part import shards_of_part, split_and_part


@pytest.mark.parametrize(
    ("part", "shards"),
    [
        ("[:10%]", [0, 1]),
        ("[90%:]", [18, 19]),
        ("[10%:20%]", [2, 3]),
        ("[:1%]", [0]),  # at least one
        ("[:0.5%]", [0]),
        ("[99%:]", [19]),
        ("[51%:52%]", [10]),
        ("[:12.5%]", [0, 1, 2]),  # 2.5 is rounded up
        ("[18shard:]", [18, 19]),
        ("[2shard:5shard]", [2, 3, 4]),
        ("[::7]", [0, 7, 14]),
        ("[1shard:50%:4]", [1, 5, 9]),
        ("[:]", list(range(20))),
        ("[:500%]", list(range(20))),
    ],
)
def test_parts_are_whole_shards(part, shards):
    assert list(shards_of_part(part, 20, "here")) == shards


def test_tenths_meet_without_overlap_or_gap():
    for count in (1, 3, 7, 20, 64, 101):
        bounds = [(i, i + 10) for i in range(0, 100, 10)]
        if count >= 10:
            parts = [shards_of_part(f"[{a}%:{b}%]", count, "") for a, b in bounds]
            assert sum(parts, ()) == tuple(range(count))


@pytest.mark.parametrize(
    "part", ["[:10]", "[10%]", "[::0]", "[-1shard:]", "[:10%", "[:0%]", "[50%:10%]", "[]"]
)
def test_what_is_no_part_or_empty_is_one_line(part):
    with pytest.raises(UserError, match="here: "):
        shards_of_part(part, 20, "here")


def test_a_split_and_its_part():
    assert split_and_part("train[:10%]") == ("train", "[:10%]")
    assert split_and_part("train") == ("train", "")
