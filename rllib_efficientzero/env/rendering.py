"""Chooses the OpenGL with which MuJoCo can render without a screen."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
import importlib.util
import os
import pathlib

PACKAGES = {"egl": "libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
"""Debian and Ubuntu packages that each renderer needs."""
HEADLESS = ("egl", "osmesa")
"""Values of MUJOCO_GL that need no screen."""
EGL_PLATFORM_DEVICE = 0x313F
MAX_DEVICES = 16


class RenderingError(RuntimeError):
    """No renderer works on this machine."""


def load_triton_first() -> None:
    """Loads Triton, if it is installed, before Mesa is loaded.

    Mesa's drivers and Triton each bring an LLVM, and Triton crashes if it is loaded second. torch loads Triton on
    unexpected occasions, such as a call of `use_deterministic_algorithms`. If Mesa is already loaded, does nothing.
    """
    if not _is_llvm_loaded():
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")


def _is_llvm_loaded() -> bool:
    """Whether this process has loaded LLVM as a shared library. Triton's LLVM does not count: it is linked in."""
    try:
        return "/libLLVM" in pathlib.Path("/proc/self/maps").read_text()
    except OSError:  # not Linux: there is no Triton either
        return False


def must_load_triton_first() -> bool:
    """Whether RLlib, which imports parts of dm_control by itself, will load OpenGL in every process."""
    return os.environ.get("MUJOCO_GL") in HEADLESS and importlib.util.find_spec("triton") is not None


def choose_renderer(*, required: bool = True) -> str:
    """Returns a value of MUJOCO_GL that works: "egl" (on a GPU if there is one), else "osmesa", else "disabled".

    Raises:
        RenderingError: neither works, and one is required.
    """
    if _egl_works():
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    if not required:
        return "disabled"
    raise RenderingError(
        "images need OpenGL without a screen, and neither EGL nor OSMesa works here: apt-get install "
        f"{PACKAGES['egl']} (EGL) or apt-get install {PACKAGES['osmesa']} (OSMesa); on a GPU, its driver's own EGL."
    )


def _egl_works() -> bool:
    """Whether an EGL display can be initialised on any device. Calls the EGL library directly: once PyOpenGL is loaded
    for EGL, it could not be switched to OSMesa."""
    load_triton_first()
    name = ctypes.util.find_library("EGL")
    if name is None or not ctypes.util.find_library("GL"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        return _initialises(ctypes.CDLL(name))
    return False


def _initialises(egl: ctypes.CDLL) -> bool:
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query, display_of = egl.eglGetProcAddress(b"eglQueryDevicesEXT"), egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not display_of:
        return False
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    query_devices = ctypes.CFUNCTYPE(integer, integer, ctypes.POINTER(pointer), ctypes.POINTER(integer))(query)
    platform_display = ctypes.CFUNCTYPE(pointer, integer, pointer, pointer)(display_of)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    devices, count = (pointer * MAX_DEVICES)(), integer()
    if not query_devices(MAX_DEVICES, devices, ctypes.byref(count)):
        return False
    displays = [platform_display(EGL_PLATFORM_DEVICE, devices[index], None) for index in range(count.value)]
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
