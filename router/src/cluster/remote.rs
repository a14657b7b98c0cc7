//! `RemoteExperts`: the seam's other side, for experts that workers hold. It runs on the engine's thread.
//!
//! The rows of a layer are kept until they are combined. Where a worker fails in between, the layer is computed again under the
//! next plan, whole: experts are pure, so that nobody notices.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{
    FrameBody, FrameKind, HEADER_BYTES, Header, Road, RowForm, Traffic, call_bytes,
};
use gaterail_kernels::ops::{ExpertsScratch, PartialSums, QuantRows, add_travelled, partial_sums};
use gaterail_kernels::{Buffer, Stream, View, ViewMut};
use gaterail_model::walk::{ActRows, ExpertLayer, ExpertMath, Hits, RoutedRows, Routing, StepError};
use gaterail_proto::{Epoch, LayerId, RouterId, WorkerId};

use super::link::{self, Link, NoReply};
use super::plans::{Fault, Plan, Plans};
use super::routes::{Routes, Scratch, Share};
use super::rows::{KeptRows, Picked};
use super::stats::{ExchangeStats, add};

/// How long the engine waits for others.
#[derive(Clone, Debug)]
pub struct RemoteLimits {
    /// A worker that has not answered a call by then has failed.
    pub call_max: Duration,
    /// A step fails when no plan that can be computed came by then.
    pub plan_max: Duration,
}

impl Default for RemoteLimits {
    fn default() -> RemoteLimits {
        RemoteLimits { call_max: Duration::from_secs(30), plan_max: Duration::from_secs(120) }
    }
}

/// Experts behind channels.
pub struct RemoteExperts {
    math: ExpertMath,
    router: RouterId,
    plans: Arc<Plans>,
    limits: RemoteLimits,
    stats: Arc<ExchangeStats>,
    hits: Arc<Hits>,
    /// When the step at hand sent its first rows.
    began: Option<Instant>,
    links: Vec<Link>,
    active: Option<Active>,
    /// `Plans::changes` when it was looked at last.
    seen: u64,
    /// Calls so far, and connections.
    calls: u64,
    serials: u64,
    /// The epoch beyond which no plan came in time: nobody waits as long for the next one again.
    hopeless: Option<Option<Epoch>>,
    spare: Vec<Parcel>,
    scratch: Scratch,
    /// Workers that a layer's rows go to, in the order of sending.
    order: Vec<usize>,
    picked: Picked,
    int8: Option<QuantRows>,
    /// Which rows a worker gets; `None`: the road that moves fewer bytes.
    road: Option<Road>,
    reply: FrameBody,
    experts: Option<ExpertsScratch>,
    own_ids: Option<Buffer<u32>>,
    own_weights: Option<Buffer<f32>>,
    own_x: Option<Buffer<f32>>,
}

/// The plan in force.
struct Active {
    plan: Plan,
    routes: Arc<Routes>,
    /// Index into `links` by worker of the placement; `None` for the router itself.
    links: Vec<Option<usize>>,
}

/// Rows that are with their experts.
#[must_use]
pub struct RemoteTicket(Parcel);

/// The rows of one layer, kept until they are combined.
struct Parcel {
    layer: LayerId,
    kept: KeptRows,
    /// What each worker of the plan got.
    shares: Vec<Share>,
    /// Calls that are not answered.
    pending: Vec<Pending>,
    /// The router's own part, and whatever came home.
    sums: PartialSums,
    sent: Option<Epoch>,
    /// A worker that its rows did not reach.
    failed: Option<Failed>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Index into `Placement::workers`.
    worker: usize,
    /// `Link::serial`
    link: u64,
    call: u64,
}

/// Who failed and how.
#[derive(Debug)]
struct Failed {
    worker: WorkerId,
    why: String,
    /// It does not hold the epoch: no fault where that is over.
    aborted: bool,
}

impl RemoteExperts {
    pub fn new(
        math: ExpertMath,
        router: RouterId,
        plans: Arc<Plans>,
        stats: Arc<ExchangeStats>,
        limits: RemoteLimits,
    ) -> RemoteExperts {
        RemoteExperts {
            hits: stats.count_hits(&math),
            began: None,
            math,
            router,
            plans,
            limits,
            stats,
            links: Vec::new(),
            active: None,
            seen: 0,
            calls: 0,
            serials: 0,
            hopeless: None,
            spare: Vec::new(),
            scratch: Scratch::default(),
            order: Vec::new(),
            picked: Picked::default(),
            int8: None,
            road: None,
            reply: FrameBody::default(),
            experts: None,
            own_ids: None,
            own_weights: None,
            own_x: None,
        }
    }

    /// Workers get all rows of every batch, or those alone that they need, whatever has fewer bytes.
    pub fn on_road(self, road: Option<Road>) -> RemoteExperts {
        RemoteExperts { road, ..self }
    }

    /// Takes over what control has changed.
    fn adopt(&mut self) {
        let seen = self.plans.changes();
        if seen == self.seen {
            return;
        }
        let started = Instant::now();
        self.seen = seen;
        let changes = self.plans.take();
        self.links.retain(|link| !changes.left.contains(&link.worker));
        for (worker, channel) in changes.joined {
            self.links.retain(|link| link.worker != worker);
            self.serials += 1;
            self.links.push(Link::new(worker, self.serials, channel, self.stats.link(worker)));
        }
        let before = self.active.take().map(|active| (active.plan, active.routes));
        let epoch = before.as_ref().map(|(plan, _)| plan.epoch);
        self.active = changes.plan.or(before).map(|(plan, routes)| {
            let link = |worker: &WorkerId| self.links.iter().position(|link| link.worker == *worker);
            Active { routes, links: plan.placement.workers.iter().map(link).collect(), plan }
        });
        let Some(switched) = self.active.as_ref().map(|active| active.plan.epoch) else { return };
        if Some(switched) != epoch {
            self.links.iter_mut().for_each(Link::forget_forms);
            self.stats.switch_ns.store(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
            self.plans.switched(switched);
        }
    }

    /// Waits for a plan above the one at hand, or for the first. Where that was in vain before, whoever comes next is refused at
    /// once: what waits in the queue does not wait one after another.
    fn next_plan(&mut self, beyond: Option<Epoch>, deadline: Instant) -> Result<(), StepError> {
        let deadline = if self.hopeless == Some(beyond) { Instant::now() } else { deadline };
        if !self.plans.wait_beyond(beyond, deadline) {
            self.hopeless = Some(beyond);
            return Err(StepError::Experts(format!(
                "no workers that hold all of them for {} s",
                self.limits.plan_max.as_secs()
            )));
        }
        self.hopeless = None;
        self.adopt();
        Ok(())
    }

    /// Sends the rows to whom the plan says. What does not reach its worker shows in the parcel. `x` is where the rows came from,
    /// while they are there.
    fn send(&mut self, parcel: &mut Parcel, x: Option<View<'_>>, stream: &Stream) -> Result<(), StepError> {
        for Pending { link, call, .. } in parcel.pending.drain(..) {
            self.links.iter_mut().filter(|at| at.serial == link).for_each(|link| link.close(call));
        }
        let Some(active) = &self.active else { panic!("rows without a plan") };
        parcel.failed = None;
        parcel.sums.reset(stream, parcel.kept.rows);
        parcel.sent = Some(active.plan.epoch);
        let routes = active.routes.layer(parcel.layer);
        let (ids, top_k) = (&parcel.kept.ids, parcel.kept.top_k);
        routes.shares(ids, top_k, &active.plan.speeds, &mut self.scratch, &mut parcel.shares);
        let own = active.plan.own.as_ref().map(|own| own.index);
        self.order.clear();
        let asked = |worker: &usize| Some(*worker) != own && !parcel.shares[*worker].rows.is_empty();
        self.order.extend((0..parcel.shares.len()).filter(asked));
        // A worker that shares this thread's core takes it over as soon as it has a call, for milliseconds: such ones come last,
        // or the others would wait for theirs.
        let handing = |worker: &usize| active.links[*worker].map_or(0.0, |link| self.links[link].handing());
        self.order.sort_unstable_by(|a, b| handing(a).total_cmp(&handing(b)).then(a.cmp(b)));
        // Once for all who take them so: the group is the layer's.
        let width = self.math.hidden;
        let takes = |worker: &usize| Some(self.links[active.links[*worker]?].form(parcel.layer, width));
        let int8 = self.order.iter().filter_map(takes).find(|form| *form != RowForm::F32);
        if let Some((x, form)) = x.zip(int8) {
            parcel.kept.quantize(x, form, &mut self.int8, stream)?;
        }
        for at in 0..self.order.len() {
            if let Err(failed) = self.send_to(self.order[at], parcel) {
                parcel.failed = Some(failed);
                return Ok(());
            }
        }
        self.compute_own(parcel, stream)
    }

    fn send_to(&mut self, worker: usize, parcel: &mut Parcel) -> Result<(), Failed> {
        let Some(active) = &self.active else { panic!("rows without a plan") };
        let id = active.plan.placement.workers[worker];
        let failed =
            |why: &dyn std::fmt::Display| Failed { worker: id, why: why.to_string(), aborted: false };
        let link = active.links[worker].map(|link| &mut self.links[link]);
        let link = link.filter(|link| !link.broken).ok_or_else(|| failed(&"there is no connection to it"))?;
        let Parcel { kept, shares, layer, .. } = parcel;
        let (width, top_k, share) = (self.math.hidden, kept.top_k, &mut shares[worker]);
        let form = kept.form(link.form(*layer, width));
        let needed = share.rows.len();
        let traffic = Traffic { kind: link.channel.kind(), form, width, top_k, rows: kept.rows, needed };
        if needed < kept.rows && self.road.unwrap_or_else(|| traffic.road()) == Road::All {
            share.widen(kept.rows, top_k);
        }
        self.calls += 1;
        let header = Header {
            kind: FrameKind::Call,
            form,
            router: self.router,
            epoch: active.plan.epoch,
            call: self.calls,
            layer: *layer,
            rows: share.rows.len() as u32,
            width: width as u32,
            top_k: top_k as u32,
            body_bytes: 0,
            computed_ns: 0,
        };
        let begun = Instant::now();
        let rows = kept.call(share, form, &mut self.picked);
        let sent = rows.send(&mut *link.channel, &header, begun + self.limits.call_max);
        sent.map_err(|error| {
            link.broken = true;
            failed(&error)
        })?;
        link.sent(self.calls, begun.elapsed());
        let bytes = call_bytes(form, share.rows.len(), width, top_k);
        add(&link.stats.rows, needed as u64);
        add(&link.stats.bytes_out, HEADER_BYTES as u64 + bytes);
        add(&link.stats.gathered, u64::from(share.rows.len() < kept.rows));
        add(&link.stats.int8, u64::from(form != RowForm::F32));
        add(&link.stats.spared, call_bytes(RowForm::F32, kept.rows, width, top_k) - bytes);
        parcel.pending.push(Pending { worker, link: link.serial, call: self.calls });
        Ok(())
    }

    /// The router's own share, while the workers compute theirs.
    fn compute_own(&mut self, parcel: &mut Parcel, stream: &Stream) -> Result<(), StepError> {
        let Some(own) = self.active.as_ref().and_then(|active| active.plan.own.clone()) else {
            return Ok(());
        };
        // All rows, those of others too: their ids are passed over, and sums go to their places at once.
        let (kept, share) = (&parcel.kept, &mut parcel.shares[own.index]);
        if share.rows.is_empty() {
            return Ok(());
        }
        share.widen(kept.rows, kept.top_k);
        let device = stream.device();
        let x = grown(&mut self.own_x, device, kept.x.len())?;
        stream.upload(&kept.x, x)?;
        let ids_there = grown(&mut self.own_ids, device, share.ids.len())?;
        stream.upload(&share.ids, ids_there)?;
        let weights = grown(&mut self.own_weights, device, kept.weights.len())?;
        stream.upload(&kept.weights, weights)?;
        let scratch = match &mut self.experts {
            Some(scratch) => scratch,
            none => none.insert(ExpertsScratch::new(device)?),
        };
        let rows = RoutedRows {
            x: View::rows(x, kept.rows, self.math.hidden).into(),
            ids: ids_there,
            weights,
            top_k: kept.top_k,
        };
        Ok(self.math.add(&own.shard, parcel.layer, &rows, stream, scratch, &mut parcel.sums)?)
    }

    /// Adds what the workers computed. Replies to calls of abandoned steps are passed over.
    fn collect(&mut self, parcel: &mut Parcel, stream: &Stream) -> Result<(), Failed> {
        if let Some(failed) = parcel.failed.take() {
            return Err(failed);
        }
        let (mut slowest, mut total) = (0, 0);
        for &Pending { worker, link, call } in &parcel.pending {
            let Some(active) = &self.active else { panic!("rows without a plan") };
            let id = active.plan.placement.workers[worker];
            let failed = |why: String| Failed { worker: id, why, aborted: false };
            let link = self.links.iter_mut().find(|at| at.serial == link);
            let link = link.ok_or_else(|| failed("its connection has ended".to_string()))?;
            let (waited, plans) = (Instant::now(), &self.plans);
            let deadline = waited + self.limits.call_max;
            let header =
                link.receive(&mut self.reply, call, deadline, &mut || plans.waits_for(Some((id, waited))));
            let came = Instant::now();
            if came > waited + link::SLOW {
                plans.waits_for(None);
            }
            add(&self.stats.wait_ns, (came - waited).as_nanos() as u64);
            let header = header.map_err(|none| match none {
                // The connection is as good as before.
                NoReply::Aborted => {
                    Failed { aborted: true, ..failed("it does not hold the plan's epoch".to_string()) }
                }
                NoReply::Failed(why) => {
                    link.broken = true;
                    failed(why)
                }
            })?;
            link.takes(parcel.layer, header.form);
            let share = &parcel.shares[worker];
            let places = (share.rows.len() < parcel.kept.rows).then_some(&share.rows[..]);
            let bytes = self.reply.bytes();
            add_travelled(stream, bytes, share.rows.len(), places, &mut parcel.sums)
                .map_err(|error| failed(error.to_string()))?;
            add(&link.stats.calls, 1);
            add(&link.stats.bytes_in, (HEADER_BYTES + bytes.len()) as u64);
            add(&link.stats.computed_ns, header.computed_ns);
            add(&self.stats.combine_ns, came.elapsed().as_nanos() as u64);
            slowest = header.computed_ns.max(slowest);
            total += header.computed_ns;
        }
        add(&self.stats.slowest_ns, slowest);
        add(&self.stats.mean_ns, total / parcel.pending.len().max(1) as u64);
        Ok(())
    }

    /// The parcel's sums under whichever plan gets them together.
    fn bring_home(&mut self, parcel: &mut Parcel, stream: &Stream) -> Result<(), StepError> {
        let started = Instant::now();
        let deadline = started + self.limits.plan_max;
        let mut stalled = false;
        loop {
            let epoch = self.active.as_ref().map(|active| active.plan.epoch);
            if parcel.sent == epoch {
                match self.collect(parcel, stream) {
                    Ok(()) => {
                        if stalled {
                            self.stats.stalled(started.elapsed());
                        }
                        return Ok(());
                    }
                    Err(Failed { worker, why, aborted }) => {
                        stalled = true;
                        let is_over = self.plans.newest().map(|plan| plan.epoch) > epoch;
                        if let Some(epoch) = epoch.filter(|_| !(aborted && is_over)) {
                            self.plans.report(Fault { worker, epoch, why });
                        }
                        self.next_plan(epoch, deadline)?;
                    }
                }
            }
            add(&self.stats.again, 1);
            self.send(parcel, None, stream)?;
        }
    }

    fn parcel(&mut self, rows: usize, stream: &Stream) -> Result<Parcel, StepError> {
        let width = self.math.hidden;
        let fitting = self.spare.iter().position(|parcel| parcel.sums.fits(rows, width));
        if let Some(index) = fitting {
            return Ok(self.spare.swap_remove(index));
        }
        Ok(Parcel {
            layer: LayerId(0),
            kept: KeptRows::default(),
            shares: Vec::new(),
            pending: Vec::new(),
            sums: PartialSums::new(stream.device(), rows.next_power_of_two(), width)?,
            sent: None,
            failed: None,
        })
    }
}

/// A buffer with room for `len` elements.
fn grown<'a, T: gaterail_kernels::Plain>(
    buffer: &'a mut Option<Buffer<T>>,
    device: &gaterail_kernels::Device,
    len: usize,
) -> Result<&'a mut Buffer<T>, StepError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
        *buffer = Some(Buffer::zeros(device, len.next_power_of_two())?);
    }
    Ok(buffer.as_mut().unwrap_or_else(|| unreachable!("made above")))
}

impl ExpertLayer for RemoteExperts {
    type Ticket = RemoteTicket;

    fn dispatch(
        &mut self,
        layer: LayerId,
        rows: &ActRows<'_>,
        routing: &Routing<'_>,
        stream: &Stream,
    ) -> Result<RemoteTicket, StepError> {
        let started = Instant::now();
        self.began.get_or_insert(started);
        self.adopt();
        if self.active.is_none() {
            self.next_plan(None, started + self.limits.plan_max).inspect_err(|_| self.began = None)?;
        }
        let mut parcel = self.parcel(rows.rows, stream).inspect_err(|_| self.began = None)?;
        parcel.layer = layer;
        parcel.kept.fetch(rows, routing, stream).inspect_err(|_| self.began = None)?;
        self.hits.count(layer, rows.rows, &parcel.kept.ids);
        let x = View::rows(rows.x, rows.rows, rows.width);
        self.send(&mut parcel, Some(x), stream).inspect_err(|_| self.began = None)?;
        add(&self.stats.dispatch_ns, started.elapsed().as_nanos() as u64);
        Ok(RemoteTicket(parcel))
    }

    fn combine(
        &mut self,
        ticket: RemoteTicket,
        out: &mut Buffer<f32>,
        stream: &Stream,
    ) -> Result<(), StepError> {
        let RemoteTicket(mut parcel) = ticket;
        self.bring_home(&mut parcel, stream).inspect_err(|_| self.began = None)?;
        let started = Instant::now();
        let out = ViewMut::rows(out, parcel.kept.rows, self.math.hidden);
        partial_sums::finish(stream, &parcel.sums, self.math.fraction_bits, out);
        add(&self.stats.combine_ns, started.elapsed().as_nanos() as u64);
        add(&self.stats.layers, 1);
        self.spare.push(parcel);
        Ok(())
    }

    fn finish(&mut self, _deadline: Instant) -> Result<(), StepError> {
        self.began.take().into_iter().for_each(|began| self.stats.stepped(began.elapsed()));
        Ok(())
    }

    fn rest(&mut self) {
        // Of a step that failed.
        self.began = None;
        self.adopt();
    }
}
