.PHONY: inplace
inplace:
	@.venv/bin/python tools/inplace.py
