# Everything runs in an own virtual environment, which the first target that needs it sets up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help demo nnx linen train two-minima why many-steps alpha flat-minima lora faithful language-model is-rho-right translate test test-optax lint format bench docs docs-test gallery dist clean

help:  ## list the targets; ARGS="..." passes options on, as in make demo ARGS="--method sam --rho 0.2"
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.examples  ## train on noisy digits with SGD, SAM and XSAM, or ARGS="--method all": a table and pictures (90 seconds)
	$(BIN)/python -m examples.01_noisy_digits $(ARGS)

nnx: $(VENV)/.examples  ## XSAM in Flax NNX, with BatchNorm and Dropout
	$(BIN)/python -m examples.02_flax_nnx $(ARGS)

linen: $(VENV)/.examples  ## XSAM in Flax linen, with BatchNorm and Dropout
	$(BIN)/python -m examples.03_flax_linen $(ARGS)

train: $(VENV)/.examples  ## train any model on any data set with any method: docs/training.md, ARGS="--preset list"
	$(BIN)/python -m examples.image_classification $(ARGS)

two-minima: $(VENV)/.examples  ## the paper's two-dimensional function: trajectories on a contour plot
	$(BIN)/python -m examples.04_two_minima $(ARGS)

why: $(VENV)/.examples  ## why SAM's gradient is better where it is applied: figure 1 of the paper, on a quadratic and a network
	$(BIN)/python -m examples.05_why_the_ascent_gradient $(ARGS)

many-steps: $(VENV)/.examples  ## what more ascent steps do to SAM's gradient: figure 10b
	$(BIN)/python -m examples.06_many_ascent_steps $(ARGS)

alpha: $(VENV)/.examples  ## the loss over alpha while training: figure 2
	$(BIN)/python -m examples.07_alpha_over_training $(ARGS)

flat-minima: $(VENV)/.examples  ## how flat the minima of SGD, SAM and XSAM are on noisy digits (1 minute)
	$(BIN)/python -m examples.08_flat_minima $(ARGS)

lora: $(VENV)/.examples  ## SAM and XSAM on LoRA adapters alone
	$(BIN)/python -m examples.09_lora $(ARGS)

faithful: $(VENV)/.examples  ## how much of the maximum within rho_max SAM's and XSAM's directions reach (half a minute)
	$(BIN)/python -m examples.10_faithful $(ARGS)

language-model: $(VENV)/.examples  ## AdamW against SAM and XSAM on a small language model, rounded to few bits (5 minutes)
	$(BIN)/python -m examples.11_language_model $(ARGS)

is-rho-right: $(VENV)/.examples  ## is rho too small or too large? SAM at eight radii (10 seconds)
	$(BIN)/python -m examples.12_is_rho_right $(ARGS)

translate: $(VENV)/.examples  ## train a Transformer to translate: docs/translation.md, ARGS="--data-dir FOLDER"
	$(BIN)/python -m examples.translation $(ARGS)

# Tests that share a fixture which trains are in one group, for one worker.
test: lint  ## lint, types, doctests and tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

test-optax: $(VENV)/.test  ## Optax's own suites over every method: the cases that are too slow for make test
	$(BIN)/python -m pytest -n $(JOBS) -m optax_full tests/test_optax_suites.py $(ARGS)

lint: $(VENV)/.test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test  ## rewrite the code as ruff formats it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.examples  ## step times, memory and compile times against hand-written SAM
	$(BIN)/python -m benchmarks.run $(ARGS)

docs: $(VENV)/.docs  ## build the site: docs/_build/html/index.html
	$(BIN)/python docs/make_notebooks.py --execute
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs docs/_build/html
	$(BIN)/python -m pytest -q tests/test_site.py
	@echo "the site is in docs/_build/html/index.html"

docs-test: $(VENV)/.docs  ## look at the built site in a headless browser, at two widths, light and dark
	$(BIN)/python -m pytest docs/test_in_browser.py -n $(JOBS)

gallery: $(VENV)/.examples  ## run the numbered examples, and store their outputs for the site (ten minutes)
	$(BIN)/python docs/run_examples.py $(ARGS)

dist: $(VENV)/.dist  ## build the wheel and the source distribution, and try the wheel in a new environment
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/try_wheel.py dist/*.whl

clean:  ## remove the environment and caches
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xsam-jax needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "installing xsam-jax[$*] into $(VENV): half a minute"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
