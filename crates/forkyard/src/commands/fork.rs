//! `forkyard fork`

use forkyard_engine::model::{Fork, ForkSpec};

use crate::args::ForkOptions;
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render;

/// Forks a sandbox: the clones' ids on stdout, how it went on stderr.
pub(super) async fn fork(client: &Client, options: &ForkOptions) -> Result<(), Error> {
    let spec = ForkSpec { count: Some(options.count), name: options.name.clone() };
    let request = client.post(Url::sandbox(&options.id).part("fork"), &spec);
    let fork: Fork = render::waiting("copying the sandbox", request).await?;
    if options.json.json {
        return render::json(&fork);
    }
    render::lines(fork.clones.iter().map(|clone| &clone.id))
}
