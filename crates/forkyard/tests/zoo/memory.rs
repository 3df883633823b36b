//! Memory of one process.

use super::{survives, survives_forks, survives_with};

#[test]
fn fork_keeps_what_is_special_about_private_memory() {
    survives("private_memory");
}

#[test]
fn fork_leaves_memory_that_grows_and_code_that_is_made() {
    survives("growth");
}

#[test]
fn fork_keeps_mapped_files_with_changes_deleted_and_replaced() {
    survives("file_mappings");
}

#[test]
fn fork_takes_memory_of_one_moment_while_it_is_written() {
    survives("busy_memory");
}

#[test]
fn fork_takes_memory_that_a_device_fills() {
    survives_forks("direct", 5);
}

#[test]
fn fork_takes_all_memory_after_tries_that_came_to_nothing() {
    survives("memory_tries");
}

#[test]
fn fork_gives_allocators_zeros_for_what_they_let_go() {
    survives("jemalloc");
    let library = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
    if std::path::Path::new(library).exists() {
        let preload = format!("LD_PRELOAD={library}");
        survives_with("jemalloc", &[], &["-e", &preload]);
    } else {
        eprintln!("skipped: jemalloc: needs {library} of libjemalloc2");
    }
}
