//! The state machine: foca's SWIM, with its events made whole.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt, iter, mem,
    net::SocketAddr,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use foca::{
    Foca, Header, Identity, Message, NoCustomBroadcast, Notification, Runtime, State, Timer,
};
use footlight_runtime::id::NodeId;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    InvalidSettings, MAX_PACKET, Member, MemberId, MemberState, Settings, SwimAction, SwimError,
    SwimTimer,
    action::{Kind, MAX_MEMBERS},
    codec::{CodecError, Packet, PacketCodec, Side, Verdict, decode_header, encode_header},
};

/// [`Swim::join`] asks so many times, [`Settings::join_period`] apart.
const JOIN_ATTEMPTS: u8 = 40;

/// A member that is alone calls so many of those that it lost, [`Settings::reconnect_period`] apart.
const CALLED_BACK: usize = 2;

/// A member that begins anew asks so many others to take it in.
const CONTACTS: usize = 8;

/// A member that begins anew looks so often for those that were up in its past life.
const PROVE_LOOKS: u8 = 3;

/// A member that has left is forgotten after this long, since it does not come back in the same life:
/// longer than any news of it is passed on. One that was declared down may be alive, and is called for
/// [`Settings::forget_after`].
const FORGET_LEFT: Duration = Duration::from_secs(60);

/// Membership as one node sees it.
///
/// Every method leaves [`SwimAction`]s behind; take them with [`take_actions`](Self::take_actions)
/// after each call and carry them out. Nothing happens without a call.
pub struct Swim {
    foca: Foca<MemberId, PacketCodec, ChaCha8Rng, NoCustomBroadcast>,
    codec: PacketCodec,
    settings: Settings,
    config: foca::Config,
    /// Seeds foca's choices in each life, and chooses whom to call while this member is alone.
    rng: ChaCha8Rng,
    /// Counts the lives: the timers of past ones mean nothing.
    life: u32,
    /// What the owner has been told is up, and whether as a suspect.
    told: BTreeMap<SocketAddr, (MemberId, bool)>,
    /// Whom the past life knew.
    contacts: Vec<MemberId>,
    /// Whose past lives are probably over too.
    doubtful: BTreeSet<MemberId>,
    actions: Vec<SwimAction>,
    /// A timer is set for calling while alone.
    calls_back: bool,
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
        let mut rng = ChaCha8Rng::from_rng(rng);
        let codec = PacketCodec::new(me);
        let config = settings.to_foca()?;
        let foca = foca(me, config.clone(), &mut rng, &codec);
        Ok(Self {
            foca,
            codec,
            settings,
            config,
            rng,
            life: 0,
            told: BTreeMap::new(),
            contacts: Vec::new(),
            doubtful: BTreeSet::new(),
            actions: Vec::new(),
            calls_back: false,
            gone: false,
        })
    }

    /// This node as a member. Changes with [`SwimAction::Rejoined`].
    pub fn me(&self) -> MemberId {
        *self.foca.identity()
    }

    /// The other members that are known, also those that are down (for [`Settings::forget_after`]) or
    /// have left (for a minute), sorted.
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
        let addr = member.addr;
        let is_in = self.knows(|known| known.id().addr == addr && known.state() != State::Down);
        if self.gone || itself || attempts == 0 || is_in {
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
        let (header, verdict) = self.check(from, data)?;
        if let Some(verdict) = verdict
            && header.dst == self.me()
        {
            self.declared_down(header.src, verdict);
            return Ok(());
        }
        let is_up = |member: &foca::Member<MemberId>| {
            *member.id() == header.src && member.state() != State::Down
        };
        if self.doubtful.contains(&header.src) && !self.knows(is_up) {
            self.ask_the_others();
            return Ok(());
        }
        if header.message == Message::Announce && header.dst != self.me() {
            // A call to a past life. foca would take the caller for a member, though that one may
            // hear nothing from here: it is called instead, and is one when it answers.
            self.try_join(header.src, 1);
            return Ok(());
        }
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

    /// Looks at a packet before foca does; gives back what tells this node that it was declared down.
    fn check(
        &self,
        from: NodeId,
        data: &[u8],
    ) -> Result<(Header<MemberId>, Option<Verdict>), SwimError> {
        let malformed =
            |why: &dyn fmt::Display| SwimError::Malformed { from, why: why.to_string() };
        if data.len() > MAX_PACKET {
            return Err(malformed(&format_args!("it has {} bytes", data.len())));
        }
        let unreadable = |error: CodecError| malformed(&error);
        let (header, verdict) = decode_header(data).map_err(unreadable)?;
        if header.src.node != from {
            return Err(SwimError::Impostor { from, claimed: header.src });
        }
        let known = self.foca.iter_membership_state();
        if known.len() >= MAX_MEMBERS {
            let known: BTreeSet<SocketAddr> = known.map(|member| member.id().addr).collect();
            let packet = Packet::read(data).map_err(unreadable)?;
            let mut named = packet.members.iter().map(|member| member.id()).chain([&header.src]);
            if named.any(|id| !known.contains(&id.addr)) {
                return Err(SwimError::TooMany { from });
            }
        }
        Ok((header, verdict))
    }

    /// Another member says that it has declared this one down, as all of its half do.
    ///
    /// If that one is not up here either, a cut between two halves has healed, and the lesser half
    /// comes back as new (ME-7): both tell each other the size of their halves. In any case an old
    /// word decides nothing, from when the halves were still falling apart or from before the sender
    /// learned better; only one that answers what this node says now.
    fn declared_down(&mut self, by: MemberId, theirs: Verdict) {
        if self.knows(|member| member.id().addr == by.addr && member.id().supersedes(&by)) {
            return; // The last words of a past life, overtaken by the new one.
        }
        let is_up = self.knows(|member| *member.id() == by && member.state() != State::Down);
        tracing::debug!(%by, ?theirs, mine = ?self.codec.verdict(), is_up, "declared down");
        let mine = Verdict { answers: theirs.version, ..self.codec.verdict() };
        let answer = match (theirs.is_question(), is_up) {
            (true, true) => return,
            (true, false) => mine,
            (false, _) if theirs.answers == mine.version && (is_up || theirs.side >= mine.side) => {
                if let Some(me) = self.me().renew() {
                    self.begin_anew(me, Some(by));
                }
                return;
            }
            (false, true) => mine.question(),
            (false, false) => mine,
        };
        let (src, message) = (self.me(), Message::TurnUndead);
        let header = Header { src, src_incarnation: 0, dst: by, message };
        let mut packet = BytesMut::new().limit(MAX_PACKET);
        if encode_header(&header, answer, &mut packet).is_ok() {
            self.send(by, packet.into_inner().freeze());
        }
    }

    /// Goes on as another member, which knows nothing of what the past life believed of others: part
    /// of that is wrong if this one was cut off.
    ///
    /// `by` is who said that the past life is over. If that one was not up here, those who were are
    /// of the lesser half as well, and what they say is as wrong: it is not heeded until they come
    /// back as new too, or others say that they are up.
    fn begin_anew(&mut self, me: MemberId, by: Option<MemberId>) {
        let known = self.members();
        let with = |states: &[MemberState]| {
            let of_those = known.iter().filter(|member| states.contains(&member.state));
            of_those.map(|member| member.id).collect::<Vec<_>>()
        };
        let (up, down) =
            (with(&[MemberState::Up, MemberState::Suspect]), with(&[MemberState::Down]));
        let cut_off = by.is_some_and(|by| !up.contains(&by));
        let others = if cut_off { &down } else { &up };
        self.contacts = by.into_iter().chain(others.iter().copied()).collect();
        self.doubtful = if cut_off { up.into_iter().collect() } else { BTreeSet::new() };
        self.foca = foca(me, self.config.clone(), &mut self.rng, &self.codec);
        self.life = self.life.wrapping_add(1);
        self.actions.push(SwimAction::Rejoined(me));
        // Those who were up stay so in the owner's eyes, if they soon prove to be.
        self.prove_later(PROVE_LOOKS);
        let first: Vec<_> = self.contacts.iter().take(CONTACTS).copied().collect();
        first.into_iter().for_each(|member| self.try_join(member, JOIN_ATTEMPTS));
    }

    /// A member whose word is doubted speaks: one of those that are up says, with all that it knows to
    /// be up, whether that one is.
    fn ask_the_others(&mut self) {
        let up: Vec<MemberId> = self
            .foca
            .iter_membership_state()
            .filter(|member| member.state() != State::Down)
            .map(|member| *member.id())
            .collect();
        if !up.is_empty() {
            let other = up[self.rng.random_range(0..up.len())];
            self.run(|foca, effects| foca.announce(other, effects));
        }
    }

    fn prove_later(&mut self, looks: u8) {
        let timer = SwimTimer(Kind::Prove { life: self.life, looks });
        let after = self.settings.suspicion + 4 * self.settings.join_period;
        self.actions.push(SwimAction::SetTimer { after, timer });
    }

    /// Whose word was doubted is heeded from now on: by now it is back as new, or was never of the
    /// lesser half. Who was up in the past life and has not been found in this one is asked about, and
    /// is down if nobody has said otherwise by the last look: on a busy machine it takes a while to
    /// find all again.
    fn prove(&mut self, looks: u8) {
        self.doubtful.clear();
        let known: BTreeSet<SocketAddr> =
            self.foca.iter_membership_state().map(|member| member.id().addr).collect();
        if looks > 1 && self.told.keys().any(|addr| !known.contains(addr)) {
            self.ask_the_others();
            return self.prove_later(looks - 1);
        }
        self.forget_unproven();
    }

    /// Who was up in the past life and has not been found in this one is down.
    fn forget_unproven(&mut self) {
        let known: BTreeSet<SocketAddr> =
            self.foca.iter_membership_state().map(|member| member.id().addr).collect();
        let unproven = |addr: &SocketAddr, _: &mut (MemberId, bool)| !known.contains(addr);
        for (_, (member, _)) in self.told.extract_if(.., unproven) {
            self.actions.push(SwimAction::Down(member));
        }
        self.tell_changes();
        self.mind_being_alone();
    }

    /// A timer's time has come.
    pub fn handle_timer(&mut self, timer: SwimTimer) {
        match timer.0 {
            Kind::Join { member, attempts } => self.try_join(member, attempts),
            Kind::CallBack => {
                self.calls_back = false;
                self.call_back();
            }
            Kind::Prove { life, looks } => {
                if !self.gone && life == self.life {
                    self.prove(looks);
                }
            }
            Kind::Foca { life, timer } => {
                if !self.gone && life == self.life && !self.is_refuted(&timer) {
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
        !self.knows(|member| {
            member.id() == member_id
                && member.state() == State::Suspect
                && member.incarnation() == *incarnation
        })
    }

    /// Heeds that a member said goodbye in another way than by SWIM, and passes it on.
    pub fn peer_left(&mut self, member: MemberId) {
        if self.gone || !self.knows(|known| *known.id() == member) {
            return;
        }
        self.codec.departed.insert(member);
        let update = iter::once(foca::Member::down(member));
        self.run(|foca, effects| foca.apply_many(update, true, effects));
    }

    /// Declares all lives of a node down that are known, and passes it on: it was thrown out.
    pub fn expel(&mut self, node: NodeId) {
        let known = self.foca.iter_membership_state();
        let there = known.filter(|known| known.id().node == node && known.state() != State::Down);
        let update: Vec<_> = there.map(|known| foca::Member::down(*known.id())).collect();
        if !self.gone && !update.is_empty() {
            self.run(|foca, effects| foca.apply_many(update.into_iter(), true, effects));
        }
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

    fn knows(&self, such: impl FnMut(&foca::Member<MemberId>) -> bool) -> bool {
        self.foca.iter_membership_state().any(such)
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
            tracing::debug!("declared down by gossip");
            // What the past life would still say is of no use to anybody.
            return self.begin_anew(me, None);
        }
        self.tell_changes();
        self.mind_being_alone();
        for (to, data) in effects.sends {
            self.send(to, data);
        }
        for (mut after, timer) in effects.timers {
            if let Timer::RemoveDown(id) = &timer
                && self.codec.departed.contains(id)
            {
                after = after.min(FORGET_LEFT);
            }
            let timer = SwimTimer(Kind::Foca { life: self.life, timer });
            self.actions.push(SwimAction::SetTimer { after, timer });
        }
    }

    /// foca 2.0.0 stands still without members: two that lost each other, and everybody else, would
    /// never look for each other again.
    fn mind_being_alone(&mut self) {
        if self.gone || self.calls_back || !self.told.is_empty() || self.lost().is_empty() {
            return;
        }
        self.calls_back = true;
        let after = self.settings.reconnect_period;
        self.actions.push(SwimAction::SetTimer { after, timer: SwimTimer(Kind::CallBack) });
    }

    /// Those that were declared down and did not leave, and those of the past life, sorted.
    fn lost(&self) -> Vec<MemberId> {
        let down = self.foca.iter_membership_state().filter(|member| member.state() == State::Down);
        let mut lost: Vec<_> = down
            .map(|member| *member.id())
            .chain(self.contacts.iter().copied())
            .filter(|id| !self.codec.departed.contains(id))
            .collect();
        lost.sort();
        lost.dedup();
        lost
    }

    fn call_back(&mut self) {
        if self.gone || !self.told.is_empty() {
            return;
        }
        let mut lost = self.lost();
        for _ in 0..CALLED_BACK.min(lost.len()) {
            let member = lost.swap_remove(self.rng.random_range(0..lost.len()));
            self.run(|foca, effects| foca.announce(member, effects));
        }
        self.mind_being_alone();
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
        let me = self.foca.identity().node;
        let smallest = self.told.values().map(|(member, _)| member.node).fold(me, NodeId::min);
        let members = u16::try_from(self.told.len() + 1).unwrap_or(u16::MAX);
        self.codec.set_side(Side { members, smallest: Reverse(smallest) });
    }

    fn send(&mut self, to: MemberId, data: Bytes) {
        let mut must_arrive = self.gone;
        if let Ok(Packet { header, members }) = Packet::read(&data) {
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

fn foca(
    me: MemberId,
    config: foca::Config,
    rng: &mut ChaCha8Rng,
    codec: &PacketCodec,
) -> Foca<MemberId, PacketCodec, ChaCha8Rng, NoCustomBroadcast> {
    Foca::new(me, config, ChaCha8Rng::from_rng(rng), codec.clone())
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim").field("me", &self.me()).finish_non_exhaustive()
    }
}
