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
    /// A group has its id; it may be in another one by now.
    pub(super) leads_group: bool,
    /// It leaves the group that it led for another one, as the Nth of those who do.
    pub(super) leaves: Option<u32>,
    /// It is a child of init, and goes behind the sandbox's wall.
    pub(super) enters: bool,
    /// Children that it forks before it leads a session.
    pub(super) early: Vec<usize>,
    /// Its other children.
    pub(super) children: Vec<usize>,
    /// What it forks, and leaves to init.
    pub(super) orphans: Vec<usize>,
}

impl Node {
    /// All that it forks.
    pub(super) fn forked(&self) -> impl Iterator<Item = usize> {
        self.early.iter().chain(&self.children).chain(&self.orphans).copied()
    }

    /// Whether it forks any.
    pub(super) fn forks(&self) -> bool {
        self.forked().next().is_some()
    }
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

    /// All that are forked, each after those that it forks itself.
    pub(super) fn children_first(&self) -> impl Iterator<Item = usize> {
        let mut all = self.roots.clone();
        let mut next = 0;
        while let Some(&index) = all.get(next) {
            all.extend(self.node(index).into_iter().flat_map(Node::forked));
            next += 1;
        }
        all.into_iter().rev()
    }

    /// How many processes there are in all.
    pub(super) fn count(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// How many of them live on.
    pub(super) fn alive(&self) -> u32 {
        self.nodes.iter().filter(|node| matches!(node.role, Role::Alive(_))).count() as u32
    }

    /// How many leave the group that they led.
    pub(super) fn leavers(&self) -> u32 {
        self.nodes.iter().filter(|node| node.leaves.is_some()).count() as u32
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
    planner.add_foregrounds(picture);
    let births = birth_sessions(processes);
    for (process, birth) in processes.iter().zip(births) {
        planner.place(process, birth, processes)?;
    }
    planner.order_leavers(processes)?;
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
            leaves: None,
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

    /// Processes that lead a group for others and are in another one themselves leave it once it
    /// has another member: it would be gone with its last.
    fn order_leavers(&mut self, processes: &[Process]) -> Result<()> {
        let led: BTreeSet<u32> = processes.iter().map(|process| process.group).collect();
        let leaves =
            |process: &&Process| process.group != process.pid && led.contains(&process.pid);
        let waiting: BTreeMap<u32, u32> =
            processes.iter().filter(leaves).map(|process| (process.pid, process.group)).collect();
        // Groups that have another member, the last first.
        let others = processes.iter().filter(|process| !waiting.contains_key(&process.pid));
        let mut ready: Vec<u32> = others.map(|process| process.group).collect();
        let mut rank = 0;
        while let Some(group) = ready.pop() {
            let node = self.by_pid.get(&group).and_then(|&at| self.plan.nodes.get_mut(at));
            let (Some(node), Some(next)) = (node, waiting.get(&group)) else { continue };
            if node.leaves.is_none() {
                (node.leads_group, node.leaves) = (true, Some(rank));
                rank += 1;
                ready.push(*next);
            }
        }
        if rank as usize != waiting.len() {
            return Err(Error::Unsteady("groups that only led each other".to_owned()));
        }
        Ok(())
    }

    /// Groups that are in the foreground of a terminal although nobody is left of them.
    fn add_foregrounds(&mut self, picture: &Picture) {
        for look in picture.terminals.iter().filter_map(|terminal| terminal.look.as_deref()) {
            let (group, session) = (look.foreground, look.session);
            // Groups with members have a leader by now.
            if group != 0 && !self.by_pid.contains_key(&group) && self.by_pid.contains_key(&session)
            {
                let index = self.push(group, group, session, Role::Temporary);
                self.adopt(session, index);
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

    fn place(&mut self, process: &Process, birth: Option<u32>, all: &[Process]) -> Result<()> {
        let Some(&index) = self.by_pid.get(&process.pid) else { return Ok(()) };
        if process.parent == 1 || !self.by_pid.contains_key(&process.parent) {
            match birth {
                Some(session) if session != process.pid => self.adopt(session, index),
                _ => self.root(index),
            }
            return Ok(());
        }
        // The first nodes are the processes, in their order.
        let at = self.by_pid.get(&process.parent).copied().unwrap_or_default();
        let (Some(parent), Some(node)) = (all.get(at), self.plan.nodes.get_mut(at)) else {
            return Ok(());
        };
        if birth.is_none_or(|session| session == parent.session) {
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

/// The session that each process must be born in: its own unless it leads one, else that of children
/// which were born before it did; none where that does not matter.
fn birth_sessions(processes: &[Process]) -> Vec<Option<u32>> {
    let mut births = Vec::with_capacity(processes.len());
    // Those of leaders, as their children have it; in the end, as the first of them has it.
    let mut by_children = BTreeMap::new();
    // Children come behind their parents.
    for process in processes.iter().rev() {
        let leads = process.session == process.pid;
        let birth = if leads { by_children.remove(&process.pid) } else { Some(process.session) };
        if let Some(session) = birth.filter(|session| *session != process.parent) {
            by_children.insert(process.parent, session);
        }
        births.push(birth);
    }
    births.reverse();
    births
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parent, group and session, by process id.
    type Tree = BTreeMap<u32, (u32, u32, u32)>;

    /// What a shell and its programs might do, one after the other, each by one of those there.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        Fork,
        LeadSession,
        LeadGroup,
        /// Joins the group of another one.
        Join(u8),
        End,
    }

    fn deeds() -> impl Strategy<Value = Vec<(u8, Deed)>> {
        let deed = prop_oneof![
            4 => Just(Deed::Fork),
            1 => Just(Deed::LeadSession),
            1 => Just(Deed::LeadGroup),
            1 => any::<u8>().prop_map(Deed::Join),
            2 => Just(Deed::End),
        ];
        proptest::collection::vec((any::<u8>(), deed), 0..60)
    }

    /// A command of init's, and what comes of it.
    fn history(deeds: &[(u8, Deed)]) -> Tree {
        let mut tree = Tree::from([(2, (1, 2, 2))]);
        let mut next = 3;
        for &(who, deed) in deeds {
            let Some(&pid) = tree.keys().nth(usize::from(who) % tree.len().max(1)) else { break };
            let (parent, group, session) = tree[&pid];
            match deed {
                Deed::Fork => {
                    tree.insert(next, (pid, group, session));
                    next += 1;
                }
                // A leader of a group cannot.
                Deed::LeadSession if tree.values().all(|(_, group, _)| *group != pid) => {
                    tree.insert(pid, (parent, pid, pid));
                }
                Deed::LeadGroup if session != pid => {
                    tree.insert(pid, (parent, pid, session));
                }
                Deed::Join(other) if session != pid => {
                    let groups: Vec<u32> = tree
                        .values()
                        .filter(|(_, _, other)| *other == session)
                        .map(|(_, group, _)| *group)
                        .collect();
                    tree.insert(pid, (parent, groups[usize::from(other) % groups.len()], session));
                }
                Deed::End => {
                    tree.remove(&pid);
                    for (parent, ..) in tree.values_mut().filter(|(parent, ..)| *parent == pid) {
                        *parent = 1;
                    }
                }
                _ => {}
            }
        }
        tree
    }

    fn picture(tree: &Tree) -> Picture {
        let process = |(&pid, &(parent, group, session)): (&u32, &(u32, u32, u32))| Process {
            pid,
            parent,
            group,
            session,
            terminal: None,
            body: Body::Zombie(0),
        };
        Picture { processes: tree.iter().map(process).collect(), ..Picture::default() }
    }

    /// Does what a plan says, as `Site::grow` does it.
    fn carry_out(plan: &Plan) -> Tree {
        let mut tree = Tree::new();
        for &root in plan.roots() {
            grow(plan, root, (1, 1, 1), &mut tree);
        }
        let mut joining: Vec<&Node> =
            plan.nodes.iter().filter(|node| !node.leads_session && !node.leads_group).collect();
        let mut leaving: Vec<&Node> =
            plan.nodes.iter().filter(|node| node.leaves.is_some()).collect();
        leaving.sort_by_key(|node| node.leaves);
        joining.extend(leaving);
        for node in joining {
            let (parent, _, session) = tree[&node.pid];
            let exists = tree.values().any(|other| (other.1, other.2) == (node.group, session));
            assert!(exists, "no such group: {node:?}");
            tree.insert(node.pid, (parent, node.group, session));
        }
        for node in plan.nodes.iter().filter(|node| node.role == Role::Temporary) {
            tree.remove(&node.pid);
        }
        tree
    }

    fn grow(plan: &Plan, index: usize, born: (u32, u32, u32), tree: &mut Tree) {
        let node = plan.node(index).unwrap();
        let (parent, mut group, mut session) = born;
        for &child in &node.early {
            grow(plan, child, (node.pid, group, session), tree);
        }
        if node.leads_session {
            (group, session) = (node.pid, node.pid);
        } else if node.leads_group {
            group = node.pid;
        }
        for &child in &node.children {
            grow(plan, child, (node.pid, group, session), tree);
        }
        for &orphan in &node.orphans {
            let spare = plan.spare(orphan);
            assert!(spare != 0 && !tree.contains_key(&spare));
            grow(plan, orphan, (1, group, session), tree);
        }
        assert!(tree.insert(node.pid, (parent, group, session)).is_none(), "forked twice");
    }

    proptest! {
        #[test]
        fn whatever_processes_did_the_plan_leads_to_the_same_tree(deeds in deeds()) {
            let tree = history(&deeds);
            let plan = plan(&picture(&tree)).unwrap();
            prop_assert_eq!(carry_out(&plan), tree);
        }
    }
}
