"""Which names may be those of repositories."""

import pytest

from backshan_diffusers.repo_ids import may_be_repo_id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("o-w.n_er/1.5", True),
        ("name", False),
        ("", False),
        ("a/b/c", False),
        ("a//b", False),
        ("./name", False),
        ("~/name", False),
        ("/name", False),
        ("owner/", False),
        ("owner/two words", False),
    ],
)
def test_a_repository_has_an_owner_and_a_name(name, expected):
    assert may_be_repo_id(name) == expected
