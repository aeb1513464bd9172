"""A profile of some steps, wherever a run begins or ends."""

import jax.numpy as jnp
import pytest

from cocu_jax.training.timing import Profile


@pytest.mark.parametrize(("first", "last"), [(3, 9), (1, 4), (5, 5)])
def test_run_that_begins_or_ends_inside_the_profiled_steps_traces_those_it_does(
    tmp_path, first, last
):
    for attempt in ("one", "two"):  # the second cannot begin if the first did not end
        with Profile(tmp_path / attempt, first=2, steps=4) as profile:
            for step in range(first, last + 1):
                profile.before(step)
                profile.after(step, jnp.ones(2) * step)
        assert list((tmp_path / attempt).glob("plugins/profile/*/*.xplane.pb"))


def test_no_profile_outside_of_its_steps(tmp_path):
    with Profile(tmp_path, first=2, steps=4) as profile:
        for step in (1, 6, 7):
            profile.before(step)
            profile.after(step, jnp.ones(2))
    assert not list(tmp_path.iterdir())
