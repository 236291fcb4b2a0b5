"""What the README and the docstrings show runs, and shows what it says."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import rope_ext

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(rope_ext.__path__, "rope_ext.")
    if not module.name.endswith("._C")
)
THIRD_PARTY = {
    "rope_ext.__main__": "matplotlib",
    "rope_ext.integrations.transformers": "transformers",
    "rope_ext.plot": "matplotlib",
}


@pytest.mark.skipif(not README.exists(), reason="there is no README.md beside the tests")
def test_the_python_code_of_the_readme_runs():
    """One block after the other in one session, as a reader would type them."""
    text = README.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    session: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        if block.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, session, "README", None, None)
            assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
            session.update(test.globs)
        else:
            exec(compile(block, str(README), "exec"), session)


@pytest.mark.parametrize("name", ["rope_ext", *MODULES])
def test_the_examples_of_the_docstrings_run(name: str):
    needed = THIRD_PARTY.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    module = importlib.import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=options).failed == 0


def public() -> list[object]:
    """Every public function and class of the package, with the public methods of its classes."""
    found = []
    for module in (importlib.import_module(name) for name in MODULES):
        found += [
            thing
            for name, thing in vars(module).items()
            if not name.startswith("_")
            and (inspect.isfunction(thing) or inspect.isclass(thing))
            and thing.__module__ == module.__name__
        ]
    return found


@pytest.mark.parametrize(
    "thing", public(), ids=lambda thing: f"{thing.__module__}.{thing.__name__}"
)
def test_everything_public_is_documented_with_an_example(thing):
    text = inspect.getdoc(thing)
    assert text
    if not thing.__module__.endswith(".ops"):
        assert ">>>" in text


def test_the_public_names_exist():
    assert {"apply_", "rotate", "RotaryEmbedding"} <= set(rope_ext.__all__)
    assert all(hasattr(rope_ext, name) for name in rope_ext.__all__)


def test_the_package_is_typed():
    assert (Path(rope_ext.__file__).parent / "py.typed").exists()
