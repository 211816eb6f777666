"""Loads ComfyUI as a library: its options are parsed once, on import, from `sys.argv`."""

import sys

import torch

own_arguments = sys.argv
sys.argv = ["main.py"] if torch.cuda.is_available() else ["main.py", "--cpu"]

import comfy_aimdo.control  # noqa: E402

comfy_aimdo.control.init()  # before anything else of the host's, as main.py does: paged weights need its library

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.cli_args  # noqa: E402

sys.argv = own_arguments
