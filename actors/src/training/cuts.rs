//! Those who hold a shard and can't be reached from where they must be, though they are not down.
//!
//! Two nodes may not reach each other though all others reach both. The trainer must reach a primary, and a primary its
//! backups: otherwise the shard's steps wait for the cut to heal. So a primary that is cut off from the trainer is lost
//! to the shard if one of its backups is not, and a backup that is cut off from its primary is.

use footlight_runtime::{ActorAddr, NodeId};

use super::keeper::Group;

/// Some of those who hold a shard are cut off.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Cut {
    pub(super) shard: usize,
    /// They are lost to it.
    pub(super) lost: Vec<ActorAddr>,
    /// From there they can't be reached.
    pub(super) from: NodeId,
    /// Who has the shard without them.
    pub(super) stays: ActorAddr,
}

/// Who is cut off now.
pub(super) fn cuts(
    groups: &[Group],
    trainer: NodeId,
    are_cut: impl Fn(NodeId, NodeId) -> bool,
) -> Vec<Cut> {
    let of_group = |(shard, group): (usize, &Group)| {
        let members = &group.members;
        let is_in_reach = |member: &ActorAddr| !are_cut(trainer, member.node);
        // Those before the first that the trainer reaches.
        let Some(out_of_reach) = members.iter().position(is_in_reach) else { return Vec::new() };
        let stays = members[out_of_reach];
        if out_of_reach > 0 {
            let lost = members[..out_of_reach].to_vec();
            return vec![Cut { shard, lost, from: trainer, stays }];
        }
        let from = stays.node;
        let backups = members.iter().skip(1).filter(|backup| are_cut(from, backup.node));
        backups.map(|backup| Cut { shard, lost: vec![*backup], from, stays }).collect()
    };
    groups.iter().enumerate().flat_map(of_group).collect()
}

impl Cut {
    /// Takes those who are lost out of their group. Not if it has changed since: who is lost by now may be the only one
    /// that is left, or have the shard.
    pub(super) fn release(&self, groups: &mut [Group]) -> bool {
        let Some(Group { members, .. }) = groups.get_mut(self.shard) else { return false };
        let left: Vec<_> =
            members.iter().copied().filter(|member| !self.lost.contains(member)).collect();
        let is_as_it_was =
            left.first() == Some(&self.stays) && left.len() + self.lost.len() == members.len();
        if is_as_it_was {
            *members = left;
        }
        is_as_it_was
    }
}

#[cfg(test)]
mod tests {
    use footlight_runtime::{ActorId, Incarnation};

    use super::*;

    const TRAINER: NodeId = NodeId(9);

    fn member(node: u64) -> ActorAddr {
        ActorAddr { node: NodeId(node), incarnation: Incarnation(1), actor: ActorId(node) }
    }

    fn group(nodes: &[u64]) -> Group {
        Group { view: 1, members: nodes.iter().copied().map(member).collect() }
    }

    /// Who is lost of each shard, and who stays, where these can't reach each other.
    fn lost(groups: &[Group], apart: &[(u64, u64)]) -> Vec<(usize, Vec<u64>, u64)> {
        let are_cut = |one: NodeId, other: NodeId| {
            apart.contains(&(one.0, other.0)) || apart.contains(&(other.0, one.0))
        };
        let cuts = cuts(groups, TRAINER, are_cut).into_iter().map(|cut| {
            let nodes = cut.lost.iter().map(|lost| lost.node.0).collect();
            (cut.shard, nodes, cut.stays.node.0)
        });
        cuts.collect()
    }

    #[test]
    fn a_backup_that_its_primary_cannot_reach_is_lost() {
        let groups = [group(&[1, 2, 3]), group(&[2, 1])];
        assert_eq!(lost(&groups, &[]), []);
        assert_eq!(lost(&groups, &[(1, 2)]), [(0, vec![2], 1), (1, vec![1], 2)]);
        assert_eq!(lost(&groups, &[(1, 2), (1, 3)])[..2], [(0, vec![2], 1), (0, vec![3], 1)]);
        // Nobody needs these.
        assert_eq!(lost(&groups, &[(2, 3), (9, 3), (4, 5)]), []);
    }

    #[test]
    fn so_are_those_before_the_first_that_the_trainer_reaches() {
        let groups = [group(&[1, 2, 3]), group(&[2, 1])];
        assert_eq!(lost(&groups, &[(9, 1)]), [(0, vec![1], 2)]);
        assert_eq!(lost(&groups, &[(9, 1), (9, 2)]), [(0, vec![1, 2], 3)]);
        // None is better than the other.
        assert_eq!(lost(&groups[1..], &[(9, 1), (9, 2)]), []);
    }

    #[test]
    fn nobody_is_taken_out_of_a_group_that_has_changed() {
        let are_cut = |one: NodeId, other: NodeId| one.0 + other.0 == 3;
        let cut = cuts(&[group(&[1, 2])], TRAINER, are_cut).remove(0);
        for changed in [&[2][..], &[2, 3], &[1], &[1, 3]] {
            let mut groups = [group(changed)];
            assert!(!cut.release(&mut groups));
            assert_eq!(groups[0].members, group(changed).members);
        }
        let mut groups = [group(&[1, 2])];
        assert!(cut.release(&mut groups));
        assert_eq!(groups[0].members, [member(1)]);
    }
}
