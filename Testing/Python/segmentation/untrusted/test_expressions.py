"""Harmless expressions against Python's own eval; everything else is refused before anything happens."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from XAICLIPLib.segmentation.untrusted.expressions import CodeError, ExpressionError, evaluate

REFERENCES: dict[str, Any] = {
    "highres": False,
    "root": "/bundles/organs",
    "name": "model.pt",
    "count": 3,
    "spacing": [1.5, 1.5, 3.0],
    "display::overlap": 0.25,
    "names": {"liver": 1, "spleen": 2},
    "steps": [1, [2, 3]],
}


def ask(text: str, references: dict[str, Any] = REFERENCES) -> Any:
    def load(path: str) -> Any:
        raise AssertionError(f"{path} was loaded")

    return evaluate(text, references.__getitem__, load)


HARMLESS = [
    "1",
    "-2.5",
    "'text'",
    "None",
    "[1, 2.0, 'three', None, True]",
    "(1, (2, [3]))",
    "(1,)",
    "{'a': 1, 2: [@count]}",
    "@count",
    "[1.5, 1.5, 1.5] if @highres else [3.0, 3.0, 3.0]",
    "'model.pt' if @highres else 'model_lowres.pt'",
    "@root + '/models/' + @name",
    "len(@names) + @count",
    "@display::overlap * 2",
    "@display#overlap * 2",
    "@steps[1][0] + @spacing[-1]",
    "@spacing[:2] + @spacing[::-1]",
    "@names['liver']",
    "[96] * 3",
    "3 * [96]",
    "'ab' * 2",
    "2 ** 10 // 3 % 7",
    "2 ** -1 + 4 ** 0.5",
    "7 / 2 - +1",
    "1 < @count <= 3 != 4",
    "'liver' in @names and 'aorta' not in @names",
    "@highres or @name",
    "@count and @highres and 1 / 0",
    "not @highres",
    "None is None and @count is not None",
    "f'{@root}/models/{@name}'",
    "f'{@count:03d} {@display::overlap:.2f} {@name!r}'",
    "str(@count) + str(1.5)",
    "int('12') + int(2.9)",
    "float('1e3')",
    "list((1, 2)) + list(@names)",
    "tuple(@spacing)",
    "sorted(@spacing + [0.5])",
    "min(@spacing) + max(1, 2, @count)",
    " ( 1 +\n 2 ) ",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_expression_comes_to_what_python_makes_of_it(text: str) -> None:
    names = {"::".join(k.split("::")): f"v{n}" for n, k in enumerate(REFERENCES)}
    plain = re.sub(r"@(\w+(?:::\w+)*)", lambda m: names[m[1]], text.replace("#", "::"))
    expected = eval(plain.strip(), {names[key]: value for key, value in REFERENCES.items()})
    found = ask(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("package", ["numpy", "np", "torch"])
@pytest.mark.parametrize("name", ["float32", "uint8", "int64", "bool"])
def test_types_of_numbers_have_names(package: str, name: str) -> None:
    expected = getattr(torch, name) if package == "torch" else np.dtype(name)
    found = ask(f"{package}.{name}")
    assert (found if package == "torch" else np.dtype(found)) == expected


@pytest.mark.parametrize(
    "text", ["torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", "torch.device('cuda')"]
)
def test_every_device_is_the_cpu(text: str) -> None:
    assert ask(text) == torch.device("cpu")


def test_a_network_on_a_device_is_the_network() -> None:
    network = object()
    references = {"network": network, "device": torch.device("cpu"), "flag": True}
    for text in ("@network.to(@device)", "@network", "(@network if @flag else None).to('cuda')"):
        assert ask(text, references) is network
    assert ask("[@network, 1]", references) == [network, 1]


def test_a_file_is_loaded_where_it_is_used() -> None:
    asked: list[str] = []

    def load(path: str) -> Any:
        asked.append(path)
        return {"a": np.arange(3)}

    text = "torch.from_numpy(torch.load(@root + '/a.pt', map_location=torch.device('cuda'))['a'])"
    assert torch.equal(evaluate(text, REFERENCES.__getitem__, load), torch.arange(3))
    assert asked == ["/bundles/organs/a.pt"]
    assert evaluate("1 if True else torch.load(@root)", REFERENCES.__getitem__, load) == 1
    assert len(asked) == 1


def refused(witness: Path) -> dict[str, str]:
    """Expressions that are code, or that would fill the memory."""
    touch = f"open({str(witness)!r}, 'w')"
    return {
        "import": "import os",
        "import from": "from os import system",
        "statement": "x = 1",
        "two statements": "1; 2",
        "del": "del x",
        "nothing": "",
        "dunder import": f"__import__('os').system('touch {witness}')",
        "open": touch,
        "path": f"Path({str(witness)!r}).touch()",
        "eval": f"eval({touch!r})",
        "class walk": "().__class__.__bases__[0].__subclasses__()",
        "class of a text": "''.__class__",
        "class of a reference": "@network.__class__",
        "attribute of a reference": "@network.weight",
        "method of a reference": "@network.eval()",
        "method of a text": "'{0.__class__}'.format(1)",
        "method of a list": "[].append(1)",
        "to with more": "@network.to(@device, True)",
        "to of a type": "@network.to(torch.float16)",
        "to of a text": "'a'.to('cpu')",
        "reference called": "@network(1)",
        "lambda": "lambda: 1",
        "lambda called": f"(lambda: {touch})()",
        "list comprehension": "[x for x in (1, 2)]",
        "set comprehension": "{x for x in (1, 2)}",
        "dict comprehension": "{x: 1 for x in (1, 2)}",
        "generator": "max(x for x in (1, 2))",
        "walrus": "(x := 1)",
        "starred list": "[*@spacing]",
        "starred call": "max(*@spacing)",
        "dict unpacked": "{**@names}",
        "keywords unpacked": "str(**@names)",
        "key of sorted": "sorted(@spacing, key=print)",
        "await": "await x",
        "yield": "(yield)",
        "unknown name": "print",
        "unknown function": "print(1)",
        "module": "torch",
        "function as a value": "str",
        "function of torch": "torch.hub.load('a', 'b')",
        "jit": "torch.jit.load(@root)",
        "numpy that loads": "numpy.load(@root)",
        "operators of torch": "torch.ops.load_library(@root)",
        "type with a way on": "numpy.float32.__class__",
        "load with a pickle module": "torch.load(@root, pickle_module=@network)",
        "load of no text": "torch.load(@network)",
        "array of a text": "torch.from_numpy('a')",
        "device of a number": "torch.device(@network)",
        "global": "globals()['__builtins__']",
        "getattr": "getattr(@root, '__class__')",
        "ellipsis": "...",
        "bytes": "b'a' * 10",
        "complex": "1j",
        "complex power": "(-8) ** 0.5",
        "matrix product": "@spacing @ @spacing",
        "shift": "1 << 99999999999",
        "inverted": "~1",
        "huge power": "10 ** 10 ** 10",
        "power of a power": "((9 ** 9) ** 9) ** 9",
        "huge integer": "9" * 400,
        "huge text": "'a' * 10 ** 9",
        "huge list": "[0] * 10 ** 9",
        "repeated repetition": "(('a' * 9999) * 9999) * 9999",
        "huge text by a reference": "@root * 99999999999",
        "old format": "'%1000000000d' % 1",
        "format specification": "f'{1:1000000000d}'",
        "nested format specification": "f'{1:{10 ** 9}d}'",
        "format by a reference": "f'{@root:{@count}}'",
        "call in an f-string": "f'{str(1)}'",
        "attribute in an f-string": "f'{@network.__class__}'",
        "network in an f-string": "f'{@network}'",
        "network as a text": "str(@network)",
        "network compared": "@network == 1",
        "network as a truth": "1 if @network else 2",
        "network indexed": "@network[0]",
        "network added": "@network + 1",
        "reference in a text": "'@root'",
        "branch that is not taken": f"1 if True else {touch}",
        "operand that is not reached": f"True or {touch}",
        "deep nesting": "(" * 150 + "1" + ")" * 150 + "[0]" * 60,
        "deep signs": "-" * 900 + "1",
        "deep brackets": "[" * 400 + "]" * 400,
        "long": "1 + " * 400 + "1",
        "nul": "1\x00",
        "the name of a place": "reference_of_the_bundle_0",
    }


@pytest.mark.parametrize("name", refused(Path("witness")))
def test_code_is_refused_at_once_and_nothing_happens(name: str, tmp_path: Path, capsys: Any) -> None:
    class Network:
        def __getattribute__(self, name: str) -> Any:
            if name != "__class__":  # as isinstance asks for it
                raise AssertionError(f"{name} was looked at")
            return Network

    witness = tmp_path / "witness"
    before = time.monotonic()
    with pytest.raises(CodeError):
        ask(refused(witness)[name], {**REFERENCES, "network": Network(), "device": torch.device("cpu")})
    assert time.monotonic() - before < 1
    assert not witness.exists()
    assert capsys.readouterr().out == ""


def test_what_is_refused_by_its_form_asks_for_no_reference() -> None:
    def find(name: str) -> Any:
        raise AssertionError(f"{name} was looked up")

    with pytest.raises(CodeError):
        evaluate("print(@root)", find, find)


def test_values_that_unfold_without_end_are_refused() -> None:
    """A billion laughs: twenty lists, each of two of the one before."""
    laugh: Any = ["ha"]
    for _ in range(30):
        laugh = [laugh, laugh]
    for text in ("@laugh", "str(@laugh)", "@laugh == @laugh", "[@laugh]", "len(@laugh)"):
        with pytest.raises(CodeError):
            ask(text, {"laugh": laugh})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "division by zero"),
        ("@names['aorta']", "aorta"),
        ("@steps[5]", "out of range"),
        ("int('many')", "invalid literal"),
        ("-'a'", "str where"),
        ("1.0e308 ** 2", "too large|out of range"),
        ("min([])", "empty"),
        ("len(3)", "no len"),
        ("1 < 'a'", "not supported"),
        ("{[]: 1}", "unhashable"),
    ],
)
def test_a_harmless_expression_that_fails_says_why(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason):
        ask(text)
