//! Snapshots: take, list, remove; and sandboxes that are paused and resumed.

use forkyard_engine::model::{
    NewSnapshot, Paused, Resumed, Snapshot, SnapshotKind, SnapshotSpec, SnapshotState,
};
use hyper::Method;

use super::each;
use crate::args::{
    PauseOptions, SnapshotList, SnapshotOptions, SnapshotsCommand, SnapshotsOptions,
};
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render::{self, Table};

/// `forkyard snapshot`
pub(super) async fn snapshot(client: &Client, options: &SnapshotOptions) -> Result<(), Error> {
    let spec = SnapshotSpec {
        name: options.name.clone(),
        files_only: options.files_only,
        wait: !options.no_wait,
    };
    let url = Url::sandbox(&options.id).part("snapshot");
    let taken: NewSnapshot =
        render::waiting("writing the snapshot", client.post(url, &spec)).await?;
    if options.json.json {
        return render::json(&taken);
    }
    render::line(taken.snapshot.id.as_str())
}

/// `forkyard snapshots`
pub(super) async fn snapshots(client: &Client, options: SnapshotsOptions) -> Result<(), Error> {
    match options.command {
        None => ls(client, &options.list).await,
        Some(SnapshotsCommand::Ls(list)) => ls(client, &list).await,
        Some(SnapshotsCommand::Rm { names, force }) => {
            let url = |name: &str| Url::new("/v1/snapshots").part(name);
            let remove = async |name: String| client.call(Method::DELETE, url(&name)).await;
            each(&names, force, remove).await
        }
    }
}

/// `forkyard pause`
pub(super) async fn pause(client: &Client, options: &PauseOptions) -> Result<(), Error> {
    let url = Url::sandbox(&options.id).part("pause");
    let none = serde_json::json!({});
    let paused: Paused =
        render::waiting("writing the sandbox to disk", client.post(url, &none)).await?;
    if options.json.json { render::json(&paused) } else { render::line(&options.id) }
}

/// `forkyard resume`
pub(super) async fn resume(client: &Client, options: &PauseOptions) -> Result<(), Error> {
    let url = Url::sandbox(&options.id).part("resume");
    let none = serde_json::json!({});
    let resumed: Resumed = render::waiting("reading the sandbox", client.post(url, &none)).await?;
    if options.json.json { render::json(&resumed) } else { render::line(&options.id) }
}

async fn ls(client: &Client, options: &SnapshotList) -> Result<(), Error> {
    let snapshots: Vec<Snapshot> = client.get(Url::new("/v1/snapshots")).await?;
    if options.json.json {
        return render::json(&snapshots);
    }
    if options.quiet {
        return render::lines(snapshots.iter().map(|snapshot| &snapshot.id));
    }
    render::data(list(&snapshots, render::now()).as_bytes())
}

fn list(snapshots: &[Snapshot], now: u64) -> String {
    let mut table =
        Table::new(&["ID", "NAME", "SANDBOX", "IMAGE", "KIND", "STATE", "SIZE", "TAKEN"]);
    for snapshot in snapshots {
        table.row([
            snapshot.id.to_string(),
            snapshot.name.clone().unwrap_or_default(),
            snapshot.sandbox.to_string(),
            render::cut(&snapshot.image, 40),
            match snapshot.kind {
                SnapshotKind::Memory => "memory".to_owned(),
                SnapshotKind::Files => "files".to_owned(),
            },
            match snapshot.state {
                SnapshotState::Writing => "writing".to_owned(),
                SnapshotState::Ready => "ready".to_owned(),
            },
            snapshot.size.map(render::size).unwrap_or_default(),
            render::age(now, snapshot.created_at),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_tells_what_is_on_disk_and_what_is_on_its_way() {
        let ready: Snapshot = serde_json::from_value(serde_json::json!({
            "id": "0123456789ab", "name": "warm", "sandbox": "0123456789aa", "image": "host",
            "kind": "memory", "state": "ready", "created_at": 1_000, "ready_at": 1_200,
            "size": 3 << 20,
        }))
        .unwrap();
        let writing = Snapshot {
            name: None,
            kind: SnapshotKind::Files,
            state: SnapshotState::Writing,
            size: None,
            ..ready.clone()
        };
        insta::assert_snapshot!(list(&[ready, writing], 61_000), @r"
        ID             NAME   SANDBOX        IMAGE   KIND     STATE     SIZE    TAKEN
        0123456789ab   warm   0123456789aa   host    memory   ready     3 MiB   1 minute ago
        0123456789ab          0123456789aa   host    files    writing           1 minute ago
        ");
    }
}
