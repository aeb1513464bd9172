"""The summary as text."""

from cocu_jax.curation.report.summary import as_text


def test_concepts_are_listed_where_none_was_added():
    summary = {
        "images": 3,
        "unreadable_count": 0,
        "unreadable_images": [],
        "share_without_caption_concepts": 0.0,
        "share_without_concepts": 0.0,
        "truncated_archives": 0,
        "mean_concepts_per_image": 5 / 3,
        "mean_added_per_image": 0.0,
        "concepts_per_image": {"1": 1, "2": 2},
        "most_frequent": {"dog": 3, "grass": 2},
        "most_added": {},
    }

    lines = as_text(summary).splitlines()
    summary["most_added"] = {"sky": 1}
    with_added = as_text(summary).splitlines()

    assert [line.split() for line in lines[-2:]] == [["dog", "3"], ["grass", "2"]]
    assert with_added[-2].split() == ["dog", "3", "sky", "1"]
    assert with_added[-1] == lines[-1]
