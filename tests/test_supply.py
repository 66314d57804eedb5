"""What the program is built on: no installed version has a known hole, by the advisories that PyPI gives out."""

import json
import subprocess
import sys
import sysconfig

import pytest


ACCEPTED: dict[str, str] = {}
"""Id of an advisory -> why it does not touch us."""


@pytest.mark.process
def test_no_installed_version_has_a_known_hole():
    pytest.importorskip("pip_audit", reason="pip install -r tests/requirements.txt")
    words = ("--path", sysconfig.get_path("purelib"), "--format", "json", "--progress-spinner", "off")
    done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True)
    packages = json.loads(done.stdout or "{}").get("dependencies", ())
    if not any("vulns" in package for package in packages):
        pytest.skip(f"PyPI's advisories cannot be had here: {done.stderr[-200:]}")
    holes = {
        (package["name"], package["version"], hole["id"]): hole["fix_versions"]
        for package in packages
        for hole in package.get("vulns", ())
    }
    assert {hole: fixed for hole, fixed in holes.items() if hole[-1] not in ACCEPTED} == {}
