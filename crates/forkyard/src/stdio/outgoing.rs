//! What is on its way to the command: stdin, and the frames that go before more of it.

use std::collections::VecDeque;

use bytes::Bytes;
use forkyard_api::stream::{HEADER, Kind};

use crate::client::frames::frame;

/// A frame that is being sent, and those behind it.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    current: Bytes,
    sent: usize,
    queued: VecDeque<Bytes>,
    /// stdin has ended and the server was told so.
    ended: bool,
}

impl Outgoing {
    /// What is to be sent next; empty when there is nothing.
    pub(super) fn rest(&self) -> &[u8] {
        self.current.get(self.sent..).unwrap_or_default()
    }

    /// Whether everything was sent.
    pub(super) fn is_idle(&self) -> bool {
        self.rest().is_empty() && self.queued.is_empty()
    }

    /// Adds a frame; it goes before stdin that was not given yet.
    pub(super) fn push(&mut self, frame: Bytes) {
        self.queued.push_back(frame);
        self.sent(0);
    }

    /// Adds the end of stdin.
    pub(super) fn end_stdin(&mut self) {
        self.ended = true;
        self.push(frame(Kind::StdinEnd, &[]));
    }

    /// Takes note that this many bytes went out.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.rest().is_empty()
            && let Some(next) = self.queued.pop_front()
        {
            (self.current, self.sent) = (next, 0);
        }
    }

    /// Begins again on a new connection. What the lost one took counts as sent, but for a frame
    /// that was not whole: of stdin, the rest follows in a frame of its own, others go again. So
    /// does the end of stdin, since to be told twice does no harm.
    pub(super) fn reconnected(&mut self) {
        if !self.rest().is_empty() {
            let is_stdin = self.current.first() == Some(&(Kind::Stdin as u8));
            if is_stdin && self.sent > HEADER {
                self.current = frame(Kind::Stdin, self.rest());
            }
            self.sent = 0;
        }
        if self.ended {
            self.end_stdin();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends until idle and returns all bytes.
    fn drain(outgoing: &mut Outgoing) -> Vec<u8> {
        let mut wire = Vec::new();
        while !outgoing.is_idle() {
            let part = outgoing.rest().to_vec();
            wire.extend_from_slice(&part);
            outgoing.sent(part.len());
        }
        wire
    }

    #[test]
    fn frames_go_out_in_order() {
        let mut outgoing = Outgoing::default();
        outgoing.push(frame(Kind::Stdin, b"ab"));
        outgoing.push(frame(Kind::Signal, b"{}"));
        outgoing.end_stdin();
        let expected =
            [frame(Kind::Stdin, b"ab"), frame(Kind::Signal, b"{}"), frame(Kind::StdinEnd, b"")];
        assert_eq!(drain(&mut outgoing), expected.concat());
    }

    #[test]
    fn a_broken_control_frame_goes_again_whole() {
        let mut outgoing = Outgoing::default();
        outgoing.push(frame(Kind::Resize, b"{}"));
        outgoing.sent(HEADER + 1);
        outgoing.reconnected();
        assert_eq!(drain(&mut outgoing), frame(Kind::Resize, b"{}"));
    }

    #[test]
    fn the_end_of_stdin_is_told_again() {
        let mut outgoing = Outgoing::default();
        outgoing.end_stdin();
        drain(&mut outgoing);
        outgoing.reconnected();
        assert_eq!(drain(&mut outgoing), frame(Kind::StdinEnd, b""));
    }

    proptest! {
        #[test]
        fn stdin_that_was_cut_goes_on_where_it_broke(cut in 0_usize..15) {
            let mut outgoing = Outgoing::default();
            outgoing.push(frame(Kind::Stdin, b"0123456789"));
            outgoing.sent(cut);
            let taken = cut.saturating_sub(HEADER);
            outgoing.reconnected();
            prop_assert_eq!(drain(&mut outgoing), frame(Kind::Stdin, &b"0123456789"[taken..]));
        }
    }
}
