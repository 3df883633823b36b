//! Compilers and what runs them, forked while they work.

use std::path::Path;

use forkyard_testkit::{TestServer, is_root, skip, wait_for};

use super::support::create;
use super::{PATIENCE, fork, missing, number};

#[test]
fn a_make_in_mid_flight_comes_to_its_end_in_each_clone() {
    if let Some(missing) = missing(&["make", "gcc"]) {
        skip!("{missing}");
    }
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(
        "mkdir /root/build; cd /root/build\n\
         for i in $(seq 24); do\n\
           { echo '#include <stdio.h>'; for j in $(seq 300); do\n\
             echo \"int f${i}_$j(int x) { return printf(\\\"%d\\\", x) + x * $j; }\"; done\n\
             echo \"int part$i(void) { return $i; }\"; } >part$i.c\n\
         done\n\
         { for i in $(seq 24); do echo \"int part$i(void);\"; done; echo '#include <stdio.h>'\n\
           echo 'int main(void) { int sum = 0;'\n\
           for i in $(seq 24); do echo \"sum += part$i();\"; done\n\
           echo 'printf(\"%d\\n\", sum); return 0; }'; } >main.c\n\
         objects=\"$(for i in $(seq 24); do echo part$i.o; done | tr '\\n' ' ')main.o\"\n\
         printf 'CFLAGS = -O2\\nprogram: %s\\n\\tgcc -o $@ $^\\n' \"$objects\" >Makefile\n\
         make -j3 >/root/said 2>&1 & job=$!",
    );
    let made = "ls /root/build/*.o 2>/dev/null | wc -l";
    wait_for("some objects", PATIENCE, || number(&source, made) > 3);
    let sandboxes = fork(source);
    for sandbox in &sandboxes {
        let line = "wait $job; echo $?; /root/build/program";
        let said = sandbox.line_within(PATIENCE, line);
        assert_eq!(said.stdout, "0\n300\n", "{said:?}: {}", sandbox.say("cat /root/said"));
    }
}

/// Where Cargo and rustc are that build this: the host's own may be below a home directory, which
/// sandboxes are not shown.
fn toolchain() -> Option<&'static Path> {
    let root = Path::new(option_env!("CARGO")?).parent()?.parent()?;
    let all = ["cargo", "rustc"].iter().all(|program| root.join("bin").join(program).is_file());
    all.then_some(root)
}

#[test]
fn a_cargo_build_in_mid_flight_comes_to_its_end_in_each_clone() {
    if let Some(missing) = missing(&["gcc", "pgrep"]) {
        skip!("{missing}");
    }
    if !is_root() {
        skip!("done as root alone: compilers take seconds");
    }
    let Some(toolchain) = toolchain() else { skip!("a toolchain of Rust that Cargo tells of") };
    let server = TestServer::start();
    let source = create(&server, &["-v", &format!("{}:/opt/rust:ro", toolchain.display())]);
    source.say(
        "export PATH=/opt/rust/bin:$PATH CARGO_HOME=/root/cargo; mkdir /root/build; cd /root/build\n\
         printf '[workspace]\\nmembers = [\"one\", \"two\"]\\nresolver = \"2\"\\n' >Cargo.toml\n\
         for name in one two; do\n\
           mkdir -p $name/src\n\
           printf '[package]\\nname = \"%s\"\\nedition = \"2021\"\\n' $name >$name/Cargo.toml\n\
           { for i in $(seq 60); do\n\
               echo \"fn f$i(x: usize) -> String { let mut all: Vec<_> = (0..x + $i).map(|n| format!(\\\"{n}\\\")).collect(); all.sort(); all.join(\\\",\\\") }\"\n\
             done\n\
             echo \"fn main() { println!(\\\"$name {}\\\", [\"\n\
             for i in $(seq 60); do echo \"f$i(1),\"; done\n\
             echo '].len()); }'; } >$name/src/main.rs\n\
         done\n\
         cargo build --offline -j2 >/root/said 2>&1 & job=$!",
    );
    wait_for("both compilers", PATIENCE, || number(&source, "pgrep -xc rustc || true") >= 2);
    for sandbox in fork(source) {
        let line = "wait $job; echo $?; target/debug/one; target/debug/two";
        let said = sandbox.line_within(PATIENCE, line);
        let log = sandbox.say("cat /root/said");
        assert_eq!(said.stdout, "0\none 60\ntwo 60\n", "{said:?}: {log}");
    }
}
