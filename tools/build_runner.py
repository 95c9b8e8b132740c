#!/usr/bin/env python3
"""Make the two files that `adb:[serial]` needs: edgeopt's native runner, and ONNX Runtime's library for the phone.

For a phone, you need Android's NDK and the AAR of onnxruntime-android (com.microsoft.onnxruntime on Maven Central):

    tools/build_runner.py --cc $NDK/toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang
                          --aar onnxruntime-android-1.23.0.aar --out runner

Without --cc and --aar, the runner is for this machine's processor, and the library is the installed onnxruntime's.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parent / "runner" / "runner.c"


def installed_library() -> Path:
    """Return the library in the onnxruntime package, without importing the package."""
    package = importlib.util.find_spec("onnxruntime")
    libraries = [] if package is None else sorted(Path(str(package.origin)).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        sys.exit("onnxruntime is not installed here: name the phone's library with --library or --aar")
    return libraries[0]


def main() -> None:
    """Compile the runner and copy the library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder for `runner` and `libonnxruntime.so`")
    parser.add_argument("--cc", default="cc", help="C compiler for the phone's processor (default: %(default)s)")
    parser.add_argument("--library", type=Path, help="libonnxruntime.so for the phone's processor")
    parser.add_argument("--aar", type=Path, help="AAR of onnxruntime-android that holds the library")
    parser.add_argument("--abi", default="arm64-v8a", help="architecture in the AAR (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runner, library = options.out / "runner", options.out / "libonnxruntime.so"
    if shutil.which(options.cc) is None:
        sys.exit(f"the C compiler '{options.cc}' is not installed: name one for the phone's processor with --cc")
    compiled = subprocess.run(
        [options.cc, "-std=gnu11", "-O2", "-Wall", "-Wextra", SOURCE, "-o", runner, "-pthread", "-ldl", "-lm"],
        check=False,
    )
    if compiled.returncode:
        sys.exit(f"{options.cc} could not compile {SOURCE}: see the messages above")
    try:
        if options.aar:
            with zipfile.ZipFile(options.aar) as archive:
                library.write_bytes(archive.read(f"jni/{options.abi}/libonnxruntime.so"))
        else:
            shutil.copyfile(options.library or installed_library(), library)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"no library for the phone: {error}. Name another one with --library, or with --aar and --abi")
    print(f"--device 'adb:?runner={runner.resolve()}&library={library.resolve()}'")


if __name__ == "__main__":
    main()
