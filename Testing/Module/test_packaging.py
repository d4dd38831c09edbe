"""The extension's CMake files, with stand-ins for Slicer's macros: what they package runs where it lands."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/macros.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/nothing.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/nothing.cmake")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/qt-scripted-modules")
"""

# As Slicer's macros are called, and where they put what they are given.
MACROS = """
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(GIVEN "WITH_GENERIC_TESTS;WITH_SUBDIR" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(GIVEN_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "not an argument of Slicer's macro: ${GIVEN_UNPARSED_ARGUMENTS}")
  endif()
  set(folder "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
  if(GIVEN_WITH_SUBDIR)
    set(folder "${folder}/${GIVEN_NAME}")
  endif()
  foreach(file IN LISTS GIVEN_SCRIPTS GIVEN_RESOURCES)
    configure_file("${CMAKE_CURRENT_SOURCE_DIR}/${file}" "${folder}/${file}" COPYONLY)
  endforeach()
endfunction()

function(slicer_add_python_unittest)
  cmake_parse_arguments(GIVEN "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${GIVEN_SCRIPT}")
    message(FATAL_ERROR "no such test: ${GIVEN_SCRIPT}")
  endif()
  file(APPEND "${CMAKE_BINARY_DIR}/tests.txt" "${GIVEN_SCRIPT}\\n")
endfunction()
"""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The build folder of the extension."""
    if not shutil.which("cmake") or not (shutil.which("cc") and shutil.which("c++")):
        pytest.skip("CMake or a compiler is not here")
    (tmp_path / "SlicerConfig.cmake").write_text(CONFIG)
    (tmp_path / "macros.cmake").write_text(MACROS)
    (tmp_path / "nothing.cmake").write_text("")
    build = tmp_path / "build"
    command = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DSlicer_DIR={tmp_path}", "-DBUILD_TESTING=ON"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return build


def test_the_packaged_module_finds_its_library_and_worker(built: Path, tmp_path: Path) -> None:
    folder = built / "lib" / "qt-scripted-modules"
    code = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from Testing.host import host, modules
host.install(Path({str(tmp_path)!r}))
sys.path.remove({str(ROOT)!r})
import slicer
module = modules.load_scripted_module(Path({str(folder / "XAICLIP.py")!r}))
panel = module.widgetRepresentation().self()
session = panel.logic.session
session.start()
end = time.monotonic() + 60
while session.hello is None and time.monotonic() < end:
    slicer.app.processEvents()
import XAICLIPLib
print(XAICLIPLib.__file__, session.hello.segmenters[0]["name"], sep="|")
panel.cleanup()
"""
    if importlib.util.find_spec("slicer") is None:
        pytest.skip("the test host is not here")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.strip().splitlines()[-1:] == [f"{folder}/XAICLIPLib/__init__.py|abdomen-ct"], result.stderr


def test_ctest_runs_the_self_tests(built: Path) -> None:
    assert (built / "tests.txt").read_text().split() == ["XAICLIP.py", "XAICLIPApplicationTest.py"]
