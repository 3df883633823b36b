//! Completion scripts and manual pages, made from the definition of the command line.

use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

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
        Man::new(args::definition())
            .render(&mut page)
            .map_err(|e| Error::io("make the manual page", e))?;
        return render::data(&page);
    };
    let failed = |e| Error::io(format!("write manual pages to {}", directory.display()), e);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut all = args::definition().disable_help_subcommand(true);
    all.build();
    write_pages(all, directory).map_err(failed)
}

/// What the foot of each page says that it is a part of.
const SOURCE: &str = concat!("forkyard ", env!("CARGO_PKG_VERSION"));

/// Writes the page of a command, and those of the commands below it.
fn write_pages(command: Command, directory: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below.clone(), directory)?;
    }
    Man::new(command).source(SOURCE).generate_to(directory).map(drop)
}
