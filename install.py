"""Run by the WebUI before it starts: adds peft and diffusers when they are missing, and changes nothing else.

The versions are the newest that work with the packages which the WebUI v1.10.1 pins. Both are installed
without their dependencies, which the WebUI has. Other versions that are there already are left alone.
"""

from importlib.util import find_spec

PACKAGES = {"peft": "0.13.2", "diffusers": "0.30.3"}


def main() -> None:
    """Install what is missing; without a network the WebUI starts all the same, and the tab says what to do."""
    missing = {package: version for package, version in PACKAGES.items() if find_spec(package) is None}
    if not missing:
        return
    import launch  # only now: it takes longer than all the rest, and the WebUI runs this file before each start

    for package, version in missing.items():
        try:
            launch.run_pip(f"install --no-deps {package}=={version}", f"{package} for LoRA Train")
        except RuntimeError as error:
            print(f"LoRA Train: {package} could not be installed ({str(error).splitlines()[0]}).")
            print(f"LoRA Train: run this in the WebUI's environment: pip install --no-deps {package}=={version}")


main()
