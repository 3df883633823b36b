//! Keys of clients over TCP.

use forkyard_engine::model::{Key, KeySpec, NewKey};
use hyper::Method;

use super::each;
use crate::args::KeyCommand;
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render::{self, Table};

/// `forkyard key`
pub(super) async fn key(client: &Client, command: KeyCommand) -> Result<(), Error> {
    let all = || Url::new("/v1/keys");
    match command {
        KeyCommand::Create { name, json } => {
            let made: NewKey = client.post(all(), &KeySpec { name }).await?;
            if json.json { render::json(&made) } else { render::line(&made.secret) }
        }
        KeyCommand::Ls { quiet, json } => {
            let keys: Vec<Key> = client.get(all()).await?;
            if json.json {
                return render::json(&keys);
            }
            if quiet {
                return render::lines(keys.iter().map(|key| &key.id));
            }
            render::data(list(&keys, render::now()).as_bytes())
        }
        KeyCommand::Rm { keys, force } => {
            let remove = async |key: String| client.call(Method::DELETE, all().part(&key)).await;
            each(&keys, force, remove).await
        }
    }
}

fn list(keys: &[Key], now: u64) -> String {
    let mut table = Table::new(&["ID", "NAME", "CREATED"]);
    for key in keys {
        let name = key.name.clone().unwrap_or_default();
        table.row([key.id.clone(), name, render::age(now, key.created_at)]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_tells_ids_and_names() {
        let key = |id: &str, name: Option<&str>| Key {
            id: id.to_owned(),
            name: name.map(str::to_owned),
            created_at: 1_000,
        };
        let keys = [key("0123456789ab", Some("ci")), key("abcdef012345", None)];
        insta::assert_snapshot!(list(&keys, 61_000), @r"
        ID             NAME   CREATED
        0123456789ab   ci     1 minute ago
        abcdef012345          1 minute ago
        ");
    }
}
