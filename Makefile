# make demo    four hospitals teach one student; about five minutes after installation
# make test    all tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types links wheel proto clean install

demo: install
	$(BIN)/consilium demo

# In the order of the folders, so that the federations, a minute or more each, come first. By default a file of few tests comes
# last, and several of these were kept waiting for one process while the other had nothing left to do.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "consilium needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "the venv module of Python is missing; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	@touch $(STAMP)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

links:
	@mkdir -p build/links/consilium
	@for room in clients common configs server; do ln -sfn ../../../$$room build/links/consilium/$$room; done

types: install links
	$(BIN)/mypy -p consilium

wheel: install
	rm -rf build/wheel build/lib build/bdist.*
	$(BIN)/python -m build --wheel --outdir build/wheel
	sh tests/check_wheel.sh build/wheel/*.whl

proto: install links
	cd build/links && ../../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
	  consilium/clients/gateway.proto
	cd build/links && ../../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
	  consilium/clients/teachers/inference.proto

clean:
	rm -rf $(VENV) build runs .mypy_cache .pytest_cache .ruff_cache .hypothesis
