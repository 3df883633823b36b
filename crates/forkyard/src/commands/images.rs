//! Images: pull, import, list, remove.

use std::path::Path;

use forkyard_api::routes::{Import, Progress, Pull};
use forkyard_engine::model::ImageInfo;
use hyper::Method;

use super::each;
use crate::client::{Client, Lines, Url};
use crate::error::Error;
use crate::render::{self, ProgressView, Table};

/// `forkyard image pull`
pub(super) async fn pull(
    client: &Client,
    reference: String,
    platform: Option<String>,
    plain_http: bool,
    quiet: bool,
) -> Result<(), Error> {
    let body = Pull { reference, platform, plain_http };
    let lines = client.lines(Url::new("/v1/images/pull"), &body).await?;
    finish(lines, ProgressView::new(quiet)).await
}

/// `forkyard image import`
pub(super) async fn import(
    client: &Client,
    path: &Path,
    name: Option<String>,
    quiet: bool,
) -> Result<(), Error> {
    let shown = path.display().to_string();
    let absolute = std::fs::canonicalize(path)
        .map_err(|e| Error::io(format!("import {shown}"), e))?
        .into_os_string()
        .into_string()
        .map_err(|_| Error::Usage {
            what: format!("import {shown}: its path is not UTF-8"),
            hint: Some("rename it, or link to it".to_owned()),
        })?;
    let lines =
        client.lines(Url::new("/v1/images/import"), &Import { path: absolute, name }).await?;
    finish(lines, ProgressView::new(quiet)).await
}

/// `forkyard image ls`
pub(super) async fn ls(client: &Client, quiet: bool, json: bool) -> Result<(), Error> {
    let images: Vec<ImageInfo> = client.get(Url::new("/v1/images")).await?;
    if json {
        return render::json(&images);
    }
    if quiet {
        return render::lines(images.iter().map(|image| &image.name));
    }
    render::data(list(&images, render::now()).as_bytes())
}

/// `forkyard image rm`
pub(super) async fn rm(client: &Client, names: &[String], force: bool) -> Result<(), Error> {
    let remove =
        async |name: String| client.call(Method::DELETE, Url::new("/v1/images").part(&name)).await;
    each(names, force, remove).await
}

/// Shows progress to its end, and prints the image's name.
async fn finish(mut lines: Lines, mut view: ProgressView) -> Result<(), Error> {
    while let Some(progress) = lines.next::<Progress>().await? {
        match progress {
            Progress::Done { image } => {
                drop(view);
                return render::line(&image.name);
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
