//! Images: pull, import, list, show, remove.

use std::path::Path;

use forkyard_api::routes::{Import, Progress, Pull};
use forkyard_engine::model::{ImageDetails, ImageInfo, Pruned};
use hyper::Method;

use super::each;
use crate::args::{FetchOutput, ImageCommand, JsonOption};
use crate::client::{Client, Lines, Url};
use crate::error::Error;
use crate::render::{self, ProgressView, Table};

/// `forkyard image ...`
pub(super) async fn image(client: &Client, command: ImageCommand) -> Result<(), Error> {
    match command {
        ImageCommand::Pull { reference, platform, plain_http, timeout, output } => {
            let timeout_ms = Some(timeout.as_millis() as u64);
            let body = Pull { reference, platform, plain_http, timeout_ms };
            let lines = client.lines(Url::new("/v1/images/pull"), &body).await?;
            finish(lines, output).await
        }
        ImageCommand::Import { path, name, platform, output } => {
            let body = Import { path: absolute(&path)?, name, platform };
            let lines = client.lines(Url::new("/v1/images/import"), &body).await?;
            finish(lines, output).await
        }
        ImageCommand::Ls { quiet, json } => ls(client, quiet, json.json).await,
        ImageCommand::Inspect { names, json } => inspect(client, &names, json.json).await,
        ImageCommand::Prune(JsonOption { json }) => {
            let none = serde_json::json!({});
            let pruned: Pruned = client.post(Url::new("/v1/images/prune"), &none).await?;
            if json {
                return render::json(&pruned);
            }
            let plural = if pruned.layers == 1 { "" } else { "s" };
            let size = render::size(pruned.bytes);
            render::line(&format!("{} layer{plural}, {size}", pruned.layers))
        }
        ImageCommand::Rm { names, force } => {
            let url = |name: &str| Url::new("/v1/images").part(name);
            let remove = async |name: String| client.call(Method::DELETE, url(&name)).await;
            each(&names, force, remove).await
        }
    }
}

/// The path as the server, which has another working directory, finds it.
fn absolute(path: &Path) -> Result<String, Error> {
    let shown = path.display().to_string();
    std::fs::canonicalize(path)
        .map_err(|e| Error::io(format!("import {shown}"), e))?
        .into_os_string()
        .into_string()
        .map_err(|_| Error::Usage {
            what: format!("import {shown}: its path is not UTF-8"),
            hint: Some("rename it, or link to it".to_owned()),
        })
}

async fn ls(client: &Client, quiet: bool, json: bool) -> Result<(), Error> {
    let images: Vec<ImageInfo> = client.get(Url::new("/v1/images")).await?;
    if json {
        return render::json(&images);
    }
    if quiet {
        return render::lines(images.iter().map(|image| &image.name));
    }
    render::data(list(&images, render::now()).as_bytes())
}

async fn inspect(client: &Client, names: &[String], json: bool) -> Result<(), Error> {
    let mut images = Vec::new();
    for name in names {
        images.push(client.get::<ImageDetails>(Url::new("/v1/images").part(name)).await?);
    }
    if json {
        return render::json(&images);
    }
    let now = render::now();
    let cards: Vec<String> = images.iter().map(|image| card(image, now)).collect();
    render::data(cards.join("\n").as_bytes())
}

/// Shows progress to its end, and prints the image's name.
async fn finish(mut lines: Lines, output: FetchOutput) -> Result<(), Error> {
    let mut view = ProgressView::new(output.quiet);
    while let Some(progress) = lines.next::<Progress>().await? {
        match progress {
            Progress::Done { image } => {
                drop(view);
                return if output.json { render::json(&image) } else { render::line(&image.name) };
            }
            Progress::Error { error } => return Err(Error::Server(error)),
            other => view.update(&other),
        }
    }
    Err(Error::Protocol("it broke off before the image was there".to_owned()))
}

fn list(images: &[ImageInfo], now: u64) -> String {
    let mut table = Table::new(&["NAME", "DIGEST", "LAYERS", "SIZE", "ADDED"]);
    for image in images {
        let digest = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
        table.row([
            image.name.clone(),
            digest.chars().take(12).collect(),
            image.layers.to_string(),
            render::size(image.size),
            render::age(now, image.created_at),
        ]);
    }
    table.text()
}

fn card(image: &ImageDetails, now: u64) -> String {
    let mut table = Table::bare();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            table.row([format!("{name}:"), value]);
        }
    };
    let config = &image.config;
    add("Name", image.name.clone());
    add("Digest", image.digest.clone());
    add("Platform", image.platform.clone().unwrap_or_default());
    add("Size", render::size(image.size));
    let added =
        image.created_at.map(|at| format!("{} ({})", render::time(at), render::age(now, at)));
    add("Added", added.unwrap_or_default());
    add("User", config.user.clone().unwrap_or_default());
    add("Directory", config.workdir.clone().unwrap_or_default());
    add("Entrypoint", words(&config.entrypoint));
    add("Command", words(&config.cmd));
    for variable in &config.env {
        add("Variable", variable.clone());
    }
    for (key, value) in &config.labels {
        add("Label", format!("{key}={value}"));
    }
    for layer in &image.layers {
        add("Layer", layer.clone());
    }
    table.text()
}

/// Arguments so that one can tell where each ends.
fn words(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let word = |argument: &String| {
        if argument.chars().all(plain) && !argument.is_empty() {
            argument.clone()
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    };
    arguments.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use forkyard_engine::model::ImageConfig;

    #[test]
    fn a_card_tells_how_to_run_something_in_the_image() {
        let image = ImageDetails {
            name: "app:1".to_owned(),
            digest: "sha256:00".to_owned(),
            platform: Some("linux/amd64".to_owned()),
            size: 3 << 20,
            created_at: Some(1_000),
            layers: vec!["sha256:01".to_owned(), "/srv/root".to_owned()],
            config: ImageConfig {
                env: vec!["PATH=/bin".to_owned()],
                user: Some("app".to_owned()),
                entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned(), "it's".to_owned()],
                ..ImageConfig::default()
            },
        };
        insta::assert_snapshot!(card(&image, 61_000), @r"
        Name:         app:1
        Digest:       sha256:00
        Platform:     linux/amd64
        Size:         3 MiB
        Added:        1970-01-01 00:00:01Z (1 minute ago)
        User:         app
        Entrypoint:   /bin/sh -c 'it'\''s'
        Variable:     PATH=/bin
        Layer:        sha256:01
        Layer:        /srv/root
        ");
    }
}
