"""Run by the WebUI before it starts: adds diffusers when it is missing, and changes nothing else.

The version is the newest that works with the packages which the WebUI v1.10.1 pins. It is installed without its
dependencies, which the WebUI has. Another version that is there already is left alone.
"""

from importlib.util import find_spec

PACKAGES = {"diffusers": "0.30.3"}


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
