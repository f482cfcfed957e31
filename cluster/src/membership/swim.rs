//! The state machine: foca's SWIM, with its events made whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, iter, mem,
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use foca::{Codec, Foca, Message, NoCustomBroadcast, Notification, Runtime, State, Timer};
use footlight_runtime::id::NodeId;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    InvalidSettings, MAX_PACKET, Member, MemberId, MemberState, Settings, SwimAction, SwimError,
    SwimTimer,
    action::{Kind, MAX_MEMBERS},
    codec::{CodecError, PacketCodec},
};

/// [`Swim::join`] asks so many times, [`Settings::join_period`] apart.
const JOIN_ATTEMPTS: u8 = 40;

/// Membership as one node sees it.
///
/// Every method leaves [`SwimAction`]s behind; take them with [`take_actions`](Self::take_actions)
/// after each call and carry them out. Nothing happens without a call.
pub struct Swim {
    foca: Foca<MemberId, PacketCodec, ChaCha8Rng, NoCustomBroadcast>,
    codec: PacketCodec,
    settings: Settings,
    /// What the owner has been told is up, and whether as a suspect.
    told: BTreeMap<SocketAddr, (MemberId, bool)>,
    actions: Vec<SwimAction>,
    gone: bool,
}

/// What one call of foca's wants done.
#[derive(Default)]
struct Effects {
    sends: Vec<(MemberId, Bytes)>,
    timers: Vec<(Duration, Timer<MemberId>)>,
    rejoined: Option<MemberId>,
}

impl Runtime<MemberId> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, MemberId>) {
        // The other notifications are taken from the member list, where they are complete.
        if let Notification::Rejoin(me) = notification {
            self.rejoined = Some(*me);
        }
    }

    fn send_to(&mut self, to: MemberId, data: &[u8]) {
        self.sends.push((to, Bytes::copy_from_slice(data)));
    }

    fn submit_after(&mut self, timer: Timer<MemberId>, after: Duration) {
        self.timers.push((after, timer));
    }
}

impl Swim {
    /// A member that knows nobody yet. `rng` seeds its choices of whom to probe.
    ///
    /// # Errors
    /// [`InvalidSettings`] if they can't work.
    pub fn new(
        me: MemberId,
        settings: Settings,
        rng: &mut impl Rng,
    ) -> Result<Self, InvalidSettings> {
        let codec = PacketCodec::default();
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let rng = ChaCha8Rng::from_seed(seed);
        let foca = Foca::new(me, settings.to_foca()?, rng, codec.clone());
        let (told, actions) = (BTreeMap::new(), Vec::new());
        Ok(Self { foca, codec, settings, told, actions, gone: false })
    }

    /// This node as a member. Changes with [`SwimAction::Rejoined`].
    pub fn me(&self) -> MemberId {
        *self.foca.identity()
    }

    /// The other members that are known, also those that are down or have left (for
    /// [`Settings::forget_after`]), sorted.
    pub fn members(&self) -> Vec<Member> {
        let mut members: Vec<Member> = self
            .foca
            .iter_membership_state()
            .map(|member| {
                let state = match member.state() {
                    State::Alive => MemberState::Up,
                    State::Suspect => MemberState::Suspect,
                    State::Down if self.codec.departed.contains(member.id()) => MemberState::Left,
                    State::Down => MemberState::Down,
                };
                Member { id: *member.id(), state }
            })
            .collect();
        members.sort_by_key(|member| member.id);
        members
    }

    /// What there is to do since the last call.
    #[must_use = "membership stands still unless its actions are carried out"]
    pub fn take_actions(&mut self) -> Vec<SwimAction> {
        mem::take(&mut self.actions)
    }

    /// Asks a member to take this node into its cluster, again and again for 40 times
    /// [`Settings::join_period`] or until it answers: then it is `Up`.
    ///
    /// The member's full identity is needed; whoever knows only an address learns it by connecting.
    pub fn join(&mut self, member: MemberId) {
        self.try_join(member, JOIN_ATTEMPTS);
    }

    fn try_join(&mut self, member: MemberId, attempts: u8) {
        let itself = member.addr == self.me().addr;
        if self.gone || itself || attempts == 0 || self.told.contains_key(&member.addr) {
            return;
        }
        self.run(|foca, effects| foca.announce(member, effects));
        let timer = SwimTimer(Kind::Join { member, attempts: attempts - 1 });
        self.actions.push(SwimAction::SetTimer { after: self.settings.join_period, timer });
    }

    /// Heeds a packet. `from` is the node that the connection's certificate names.
    ///
    /// # Errors
    /// [`SwimError`] if the packet is worth nothing. The peer is faulty, this node is not.
    pub fn handle_data(&mut self, from: NodeId, data: &[u8]) -> Result<(), SwimError> {
        if self.gone {
            // Whoever has left stays silent: hearing of its own departure, foca would come back.
            return Ok(());
        }
        self.check(from, data)?;
        let mut result = Ok(());
        self.run(|foca, effects| {
            result = foca.handle_data(data, effects);
            Ok(())
        });
        match result {
            // A late packet of this address's earlier life, or one that went around: harmless.
            Ok(()) | Err(foca::Error::DataFromOurselves | foca::Error::IndirectForOurselves) => {
                Ok(())
            }
            Err(error) => Err(SwimError::Malformed { from, why: error.to_string() }),
        }
    }

    /// Looks at a packet before foca does.
    fn check(&self, from: NodeId, data: &[u8]) -> Result<(), SwimError> {
        let malformed =
            |why: &dyn fmt::Display| SwimError::Malformed { from, why: why.to_string() };
        if data.len() > MAX_PACKET {
            return Err(malformed(&format_args!("it has {} bytes", data.len())));
        }
        let unreadable = |error: CodecError| malformed(&error);
        let header = PacketCodec::default().decode_header(data).map_err(unreadable)?;
        if header.src.node != from {
            return Err(SwimError::Impostor { from, claimed: header.src });
        }
        let known = self.foca.iter_membership_state();
        if known.len() >= MAX_MEMBERS {
            let known: BTreeSet<SocketAddr> = known.map(|member| member.id().addr).collect();
            let (_, members) = self.codec.read(data).map_err(unreadable)?;
            let mut named = members.iter().map(|member| member.id()).chain([&header.src]);
            if named.any(|id| !known.contains(&id.addr)) {
                return Err(SwimError::TooMany { from });
            }
        }
        Ok(())
    }

    /// A timer's time has come.
    pub fn handle_timer(&mut self, timer: SwimTimer) {
        match timer.0 {
            Kind::Join { member, attempts } => self.try_join(member, attempts),
            Kind::Foca(timer) => {
                if !self.gone && !self.is_refuted(&timer) {
                    self.run(|foca, effects| foca.handle_timer(timer, effects));
                }
            }
        }
    }

    /// Whether the timer would declare a member down that has cleared itself meanwhile.
    ///
    /// foca 2.0.0 sees that and leaves its list alone, but tells the member all the same that it is
    /// down, upon which that one gives up its identity.
    fn is_refuted(&self, timer: &Timer<MemberId>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else {
            return false;
        };
        !self.foca.iter_membership_state().any(|member| {
            member.id() == member_id
                && member.state() == State::Suspect
                && member.incarnation() == *incarnation
        })
    }

    /// Heeds that a member said goodbye in another way than by SWIM, and passes it on.
    pub fn peer_left(&mut self, member: MemberId) {
        let known = self.foca.iter_membership_state().any(|known| *known.id() == member);
        if self.gone || !known {
            return;
        }
        self.codec.departed.insert(member);
        let update = iter::once(foca::Member::down(member));
        self.run(|foca, effects| foca.apply_many(update, true, effects));
    }

    /// Leaves the cluster: some members are told, who tell the others. Nothing is heeded afterwards.
    pub fn leave(&mut self) {
        if self.gone {
            return;
        }
        self.codec.departed.insert(self.me());
        self.gone = true;
        self.run(|foca, effects| foca.leave_cluster(effects));
    }

    fn run(
        &mut self,
        call: impl FnOnce(
            &mut Foca<MemberId, PacketCodec, ChaCha8Rng, NoCustomBroadcast>,
            &mut Effects,
        ) -> Result<(), foca::Error>,
    ) {
        let mut effects = Effects::default();
        if let Err(error) = call(&mut self.foca, &mut effects) {
            // foca mends itself; a probe cut short by a standstill is the usual case.
            tracing::debug!(%error, "membership");
        }
        if let Some(me) = effects.rejoined {
            // foca 2.0.0 stands still after a change of identity until somebody speaks to it; two
            // members would wait for each other for ever.
            if let Err(error) = self.foca.apply_many(iter::empty(), false, &mut effects) {
                tracing::debug!(%error, "membership");
            }
            self.actions.push(SwimAction::Rejoined(me));
        }
        self.tell_changes();
        for (to, data) in effects.sends {
            self.send(to, data);
        }
        for (after, timer) in effects.timers {
            let timer = SwimTimer(Kind::Foca(timer));
            self.actions.push(SwimAction::SetTimer { after, timer });
        }
    }

    /// Compares the member list with what the owner has been told (ME-1).
    fn tell_changes(&mut self) {
        let departed = &self.codec.departed;
        let ended = |id: MemberId| {
            if departed.contains(&id) { SwimAction::Left(id) } else { SwimAction::Down(id) }
        };
        let mut down = BTreeSet::new();
        for member in self.foca.iter_membership_state() {
            let (id, state) = (*member.id(), member.state());
            let before = self.told.get(&id.addr).copied();
            if state == State::Down {
                down.insert(id);
                if let Some((old, _)) = before {
                    self.told.remove(&id.addr);
                    self.actions.push(ended(old));
                }
                continue;
            }
            let suspect = state == State::Suspect;
            match before {
                None => self.actions.push(SwimAction::Up(id)),
                Some((old, _)) if old != id => {
                    self.actions.push(SwimAction::Renamed { old, new: id });
                }
                Some(_) => {}
            }
            let was_suspect = before.is_some_and(|(old, suspect)| old == id && suspect);
            match (was_suspect, suspect) {
                (false, true) => self.actions.push(SwimAction::Suspect(id)),
                (true, false) => self.actions.push(SwimAction::Cleared(id)),
                _ => {}
            }
            self.told.insert(id.addr, (id, suspect));
        }
        departed.retain(|id| down.contains(id));
    }

    fn send(&mut self, to: MemberId, data: Bytes) {
        let mut must_arrive = self.gone;
        if let Ok((header, members)) = self.codec.read(&data) {
            if header.message == Message::Announce && self.codec.departed.contains(&to) {
                return; // It has left: calling it back would only dial in vain.
            }
            must_arrive |=
                matches!(header.message, Message::Announce | Message::Feed | Message::TurnUndead)
                    || members.iter().any(|m| *m.id() == to && m.state() != State::Alive);
        }
        self.actions.push(SwimAction::Send { to, data, must_arrive });
    }
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim").field("me", &self.me()).finish_non_exhaustive()
    }
}
