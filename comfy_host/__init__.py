"""All that the pack knows of ComfyUI: the rooms beside this one do not import it."""
