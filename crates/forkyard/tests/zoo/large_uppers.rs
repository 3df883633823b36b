//! Files that are copied before the stop.

use super::survives;

#[test]
fn fork_takes_many_files_of_one_moment_while_they_are_written() {
    survives("writer");
}
