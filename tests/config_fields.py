"""Every field of a config, and copies in which one has another value."""

import ml_collections


def leaves(part, name: str = ""):
    """(dotted name, value) of all fields that are no mappings and no sequences."""
    if isinstance(part, ml_collections.ConfigDict):
        for key in part:
            yield from leaves(part[key], f"{name}.{key}" if name else key)
    elif isinstance(part, list | tuple):
        for index, item in enumerate(part):
            yield from leaves(item, f"{name}[{index}]")
    else:
        yield name, part


def with_value(config: ml_collections.ConfigDict, name: str, value) -> ml_collections.ConfigDict:
    """A copy in which one field has another value, of any type."""
    config = config.copy_and_resolve_references()
    *parents, last = name.replace("[", ".").replace("]", "").split(".")
    trail = [config]
    for key in parents:
        trail.append(trail[-1][int(key)] if key.isdigit() else trail[-1][key])
    with config.ignore_type():
        for depth in range(len(trail) - 1, -1, -1):
            key = last if depth == len(trail) - 1 else parents[depth]
            if isinstance(trail[depth], ml_collections.ConfigDict):
                with trail[depth].ignore_type():
                    trail[depth][key] = value
                break
            items = list(trail[depth])
            items[int(key)] = value
            value = tuple(items)
    return config
