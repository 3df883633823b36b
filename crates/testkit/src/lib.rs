//! Servers, images and leak checks for forkyard's tests.
#![forbid(unsafe_code)]
