//! What tells of events.

use super::{refused, survives};

#[test]
fn fork_keeps_counts_of_eventfds() {
    survives("eventfd");
}

#[test]
fn fork_keeps_timers_that_are_read() {
    survives("timerfd");
}

#[test]
fn fork_keeps_what_epoll_waits_for() {
    survives("epoll");
}

#[test]
fn fork_keeps_signals_that_are_read() {
    survives("signalfd");
}

#[test]
fn fork_keeps_pidfds_of_the_living_and_the_dead() {
    survives("pidfd");
}

#[test]
fn fork_keeps_watches_of_inotify_with_their_numbers() {
    survives("inotify");
}

#[test]
fn fork_of_a_pidfd_of_a_thread_is_refused() {
    refused("pidfd_thread", "(anon_inode:[pidfd]): a pidfd of a thread");
}

#[test]
fn fork_of_unread_events_of_inotify_is_refused() {
    refused("inotify_unread", "(anon_inode:inotify): events of inotify wait to be read");
}
