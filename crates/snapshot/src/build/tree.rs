//! Who forks whom: a plan by which every process comes to have its parent, group and session.
//!
//! A process is born in its parent's session and stays there unless it makes its own. So one whose
//! session is not its parent's was born before its parent left that session, or is left over from
//! a part of the tree that is gone: it is then forked by a process of that session, and orphaned
//! to init. Sessions and groups whose leaders are gone get a leader for as long as it takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::picture::{Body, Picture, Process};

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It leads a session or group until its members are there, and ends.
    Temporary,
    /// It ends, with this wait status, and is not waited for.
    Zombie(i32),
    /// It becomes the process with this index.
    Alive(usize),
}

/// A process to be forked.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) pid: u32,
    pub(super) role: Role,
    pub(super) group: u32,
    pub(super) leads_session: bool,
    pub(super) leads_group: bool,
    /// It is a child of init, and goes behind the sandbox's wall.
    pub(super) enters: bool,
    /// Children that it forks before it leads a session.
    pub(super) early: Vec<usize>,
    /// Its other children.
    pub(super) children: Vec<usize>,
    /// What it forks, and leaves to init.
    pub(super) orphans: Vec<usize>,
}

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    nodes: Vec<Node>,
    roots: Vec<usize>,
    spares: BTreeMap<usize, u32>,
}

impl Plan {
    pub(super) fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)
    }

    /// What init forks.
    pub(super) fn roots(&self) -> &[usize] {
        &self.roots
    }

    /// How many processes there are in all.
    pub(super) fn count(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// How many of them live on.
    pub(super) fn alive(&self) -> u32 {
        self.nodes.iter().filter(|node| matches!(node.role, Role::Alive(_))).count() as u32
    }

    /// A process id that nobody has, for who orphans this node.
    pub(super) fn spare(&self, index: usize) -> u32 {
        self.spares.get(&index).copied().unwrap_or_default()
    }
}

/// Makes the plan.
pub(super) fn plan(picture: &Picture) -> Result<Plan> {
    let processes = &picture.processes;
    let mut planner = Planner { plan: Plan::default(), by_pid: BTreeMap::new() };
    for (index, process) in processes.iter().enumerate() {
        planner.add(index, process);
    }
    planner.add_leaders(processes);
    for process in processes {
        planner.place(process, processes)?;
    }
    planner.spare_ids(processes);
    Ok(planner.plan)
}

struct Planner {
    plan: Plan,
    by_pid: BTreeMap<u32, usize>,
}

impl Planner {
    fn add(&mut self, index: usize, process: &Process) {
        let role = match &process.body {
            Body::Zombie(status) => Role::Zombie(*status),
            Body::Alive(_) => Role::Alive(index),
        };
        self.push(process.pid, process.group, process.session, role);
    }

    fn push(&mut self, pid: u32, group: u32, session: u32, role: Role) -> usize {
        let node = Node {
            pid,
            role,
            group,
            leads_session: session == pid,
            leads_group: group == pid,
            enters: false,
            early: Vec::new(),
            children: Vec::new(),
            orphans: Vec::new(),
        };
        self.plan.nodes.push(node);
        let index = self.plan.nodes.len() - 1;
        self.by_pid.insert(pid, index);
        index
    }

    /// Leaders of sessions and groups that have members but no leader any more.
    fn add_leaders(&mut self, processes: &[Process]) {
        for process in processes {
            if !self.by_pid.contains_key(&process.session) {
                let index =
                    self.push(process.session, process.session, process.session, Role::Temporary);
                self.root(index);
            }
        }
        for process in processes {
            if !self.by_pid.contains_key(&process.group) {
                let index =
                    self.push(process.group, process.group, process.session, Role::Temporary);
                self.adopt(process.session, index);
            }
        }
    }

    fn root(&mut self, index: usize) {
        if let Some(node) = self.plan.nodes.get_mut(index) {
            node.enters = true;
        }
        self.plan.roots.push(index);
    }

    /// Has a member of a session fork this node for init.
    fn adopt(&mut self, session: u32, index: usize) {
        let leader = self.by_pid.get(&session).and_then(|&at| self.plan.nodes.get_mut(at));
        if let Some(leader) = leader {
            leader.orphans.push(index);
            self.plan.spares.insert(index, 0);
        }
    }

    fn place(&mut self, process: &Process, all: &[Process]) -> Result<()> {
        let Some(&index) = self.by_pid.get(&process.pid) else { return Ok(()) };
        let leads = process.session == process.pid;
        if process.parent == 1 || !self.by_pid.contains_key(&process.parent) {
            match birth_session(process, all) {
                Some(session) if session != process.pid => self.adopt(session, index),
                _ => self.root(index),
            }
            return Ok(());
        }
        let Some(parent) = all.iter().find(|other| other.pid == process.parent) else {
            return Ok(());
        };
        let Some(node) = self.by_pid.get(&parent.pid).and_then(|&at| self.plan.nodes.get_mut(at))
        else {
            return Ok(());
        };
        let needed = if leads { birth_session(process, all) } else { Some(process.session) };
        if needed.is_none_or(|session| session == parent.session) {
            node.children.push(index);
        } else if parent.session == parent.pid {
            node.early.push(index);
        } else {
            return Err(Error::Refused {
                pid: process.pid,
                name: String::new(),
                what: "its session is neither its parent's nor its own".to_owned(),
            });
        }
        Ok(())
    }

    /// Ids for those who orphan others: high ones that nobody has.
    fn spare_ids(&mut self, processes: &[Process]) {
        let mut used: BTreeSet<u32> = self.by_pid.keys().copied().collect();
        for process in processes {
            if let Body::Alive(alive) = &process.body {
                used.extend(alive.threads.iter().map(|thread| thread.tid));
            }
        }
        let mut free = (300..32_000).rev().filter(|id| !used.contains(id));
        for spare in self.plan.spares.values_mut() {
            *spare = free.next().unwrap_or_default();
        }
    }
}

/// The session that a process must be born in: its own unless it leads one, else that of children
/// which it had before; none where that does not matter.
fn birth_session(process: &Process, all: &[Process]) -> Option<u32> {
    if process.session != process.pid {
        return Some(process.session);
    }
    all.iter().filter(|child| child.parent == process.pid).map(|child| child.session).find(
        |&session| {
            session != process.pid
                && !all.iter().any(|child| child.pid == session && child.parent == process.pid)
        },
    )
}
