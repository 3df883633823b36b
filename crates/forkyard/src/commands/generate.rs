//! Completion scripts and manual pages, made from the definition of the command line.

use std::path::Path;

use clap_complete::Shell;

use crate::args;
use crate::error::Error;
use crate::render;

/// `forkyard completion`
pub(super) fn completion(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::definition(), "forkyard", &mut script);
    render::data(&script)
}

/// `forkyard man`
pub(super) fn man(directory: Option<&Path>) -> Result<(), Error> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(args::definition())
            .render(&mut page)
            .map_err(|e| Error::io("make the manual page", e))?;
        return render::data(&page);
    };
    let failed = |e| Error::io(format!("write manual pages to {}", directory.display()), e);
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(args::definition(), directory).map_err(failed)
}
