# Walkeep's commands. `make test` is what CI runs; `make demo` shows what Walkeep does. CARGO_TARGET_DIR and CARGO_TERM_COLOR are respected.
.PHONY: help demo test build package bench fmt it clean-test

help:
	@echo "make demo        build, then the whole story on a throw-away server and a local repository"
	@echo "make test        everything CI checks; installs what the tests need (tests/setup.sh)"
	@echo "make package     a Debian package and a tarball of them, in target/package"
	@echo "make build       the three programs as installed, the shims static, in target/dist"
	@echo "make bench       Walkeep beside pgBackRest, pg_basebackup, rclone and cp, one table; WORKS=push,get for less (an hour or so for all)"
	@echo "make it T=name   the binaries, then the story tests whose names contain T"
	@echo "make fmt         format the code"
	@echo "make clean-test  remove scratch folders that failed tests left"

demo:
	@tests/demo.sh

test:
	@tests/run.sh

build:
	@packaging/build.sh

package:
	@packaging/package.sh

it:
	@tests/setup.sh
	@cargo build --locked --workspace --quiet
	@cargo test --locked -p walkeep-tests --test it -- --test-threads $${WALKEEP_TEST_THREADS:-3} $(T)

bench:
	@tests/bench.sh $(WORKS)

fmt:
	cargo fmt --all

clean-test:
	@for kept in /tmp/wkt-*/.kept; do if [ -e "$$kept" ]; then echo "removing $${kept%/.kept}"; rm -rf "$${kept%/.kept}"; fi; done
