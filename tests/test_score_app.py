"""A score application initializes the module as it did 0.2.5."""

from __future__ import annotations

from pathlib import Path

import pytest

import score.distlock
import score.init


def test_an_application_boots_from_its_file(url: str, tmp_path: Path) -> None:
    file = tmp_path / "app.conf"
    file.write_text(
        "[score.init]\n"
        "modules = score.distlock\n"
        "\n"
        "[DEFAULT]\n"
        "colour = blue\n"
        "\n"
        "[distlock]\n"
        f"sqlalchemy.url = {url}\n"
        "maxtime = 90s\n"
        "\n"
        "[distlock:sqlalchemy]\n"
        "pool_size = 2\n"
    )
    app = score.init.init_from_file(str(file))
    conf = app.distlock
    assert isinstance(conf, score.distlock.ConfiguredDistlockModule)
    assert isinstance(conf, score.init.ConfiguredModule)
    assert conf._finalized is True
    assert conf.maxtime == 90
    assert conf._module is score.distlock
    assert conf.log.name == "score.distlock"
    with conf.get("mylock") as lock:
        lock.extend()


def test_other_packages_of_score_stay_importable() -> None:
    import score

    assert getattr(score, "__file__", None) is None, "nobody owns the namespace"
    assert score.init.__file__ != score.distlock.__file__


@pytest.mark.parametrize("key", ["maxtme", "sqlalchemy.pol_size", "sqlalchemy.poolclass"])
def test_a_misspelt_key_of_a_file_is_an_error(url: str, tmp_path: Path, key: str) -> None:
    file = tmp_path / "app.conf"
    file.write_text(
        f"[score.init]\nmodules = score.distlock\n[distlock]\nsqlalchemy.url = {url}\n{key} = 1\n"
    )
    with pytest.raises(score.init.ConfigurationError, match=key):
        score.init.init_from_file(str(file))
