//! What a pull and an import tell while they work, and what they give in the end.

use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::store::Hold;

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Its archive is coming over the network.
    Downloading,
    /// It is being unpacked.
    Unpacking,
    /// It is in the store now.
    Done,
    /// It was in the store before.
    Present,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// A layer moved on.
    Layer {
        /// The first digits of its digest, or its name in an archive.
        id: String,
        /// How far it is.
        step: Step,
        /// Bytes done in this step.
        done: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
    },
    /// Something worth knowing: devices left out, and the like.
    Note(String),
}

/// Who is told; called from any thread, and must not block for long.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// An image that has just been pulled or imported.
#[derive(Debug)]
pub struct Fetched {
    /// The image.
    pub image: Image,
    /// What was left out or changed, a line for each kind and layer.
    pub notes: Vec<String>,
    /// Keeps its layers from being removed until this is dropped, which is to be after the image
    /// has been recorded.
    pub holds: Vec<Hold>,
}

impl Fetched {
    pub(crate) fn new(image: Image, holds: Vec<Hold>, progress: OnProgress<'_>) -> Self {
        let fresh = holds.iter().filter(|hold| hold.is_fresh());
        let notes: Vec<String> = fresh.flat_map(|hold| hold.facts().notes.clone()).collect();
        for note in &notes {
            progress(Progress::Note(note.clone()));
        }
        Self { image, notes, holds }
    }
}
