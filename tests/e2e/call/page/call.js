// A small Matrix client that can call: https://spec.matrix.org/v1.11/client-server-api/#voice-over-ip
// Two of them call each other in a room of a real homeserver.
"use strict";

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// Errors of promises that are not awaited.
const unhandledErrors = [];
addEventListener("unhandledrejection", ({ reason }) => unhandledErrors.push(`${reason}`));

// Room events of other users are dispatched by their type; "invited" comes with the ID of the room.
class Matrix extends EventTarget {
  constructor(homeserver) {
    super();
    this.homeserver = homeserver;
  }

  async request(method, path, body) {
    for (;;) {
      const answer = await fetch(`${this.homeserver}/_matrix/client/v3${path}`, {
        method,
        headers: this.token ? { Authorization: `Bearer ${this.token}` } : {},
        body: body && JSON.stringify(body),
      });
      const content = await answer.json();
      if (answer.ok) return content;
      if (answer.status !== 429) throw new Error(`${method} ${path}: ${content.errcode}: ${content.error}`);
      await pause(content.retry_after_ms ?? 1000);
    }
  }

  async logIn(user, password) {
    const identifier = { type: "m.id.user", user };
    const login = await this.request("POST", "/login", { type: "m.login.password", identifier, password });
    [this.user, this.device, this.token] = [login.user_id, login.device_id, login.access_token];
    this.position = (await this.request("GET", "/sync?timeout=0")).next_batch;
    this.sync();
  }

  async sync() {
    for (;;) {
      // As every client does, go on when the network changes.
      const answer = await this.request("GET", `/sync?timeout=10000&since=${this.position}`).catch(() => pause(500));
      if (!answer) continue;
      this.position = answer.next_batch;
      for (const room of Object.keys(answer.rooms?.invite ?? {})) this.dispatch("invited", room);
      for (const { timeline } of Object.values(answer.rooms?.join ?? {}))
        for (const { type, sender, content } of timeline.events) if (sender !== this.user) this.dispatch(type, content);
    }
  }

  dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  next(type) {
    return new Promise((done) => this.addEventListener(type, (event) => done(event.detail), { once: true }));
  }

  send(room, type, content) {
    return this.request("PUT", `/rooms/${room}/send/${type}/${crypto.randomUUID()}`, content);
  }

  async createRoom(other) {
    const options = { preset: "trusted_private_chat", is_direct: true, invite: [other] };
    return (await this.request("POST", "/createRoom", options)).room_id;
  }

  async acceptInvitation() {
    const room = await this.next("invited");
    await this.request("POST", `/join/${room}`, {});
    return room;
  }

  // The TURN servers that the homeserver offers: the URIs that begin with `prefix` and end with `suffix`.
  async relays(prefix, suffix) {
    const { uris, username, password } = await this.request("GET", "/voip/turnServer");
    return { urls: uris.filter((uri) => uri.startsWith(prefix) && uri.endsWith(suffix)), username, credential: password };
  }
}

function connect(relays, errors) {
  // As Element Web does: the pool asks the relay for far more allocations than a call needs.
  const connection = new RTCPeerConnection({ iceServers: [relays], iceTransportPolicy: "relay", iceCandidatePoolSize: 20 });
  connection.addEventListener("icecandidateerror", ({ url, errorCode, errorText }) =>
    errors.push(`${url}: ${errorCode} ${errorText}`));
  return connection;
}

// The candidates that the relays give to us, without a call.
async function gather(relays) {
  const [candidates, errors] = [[], []];
  const connection = connect(relays, errors);
  connection.createDataChannel("none");
  const complete = new Promise((done) => {
    connection.onicecandidate = ({ candidate }) => (candidate?.candidate ? candidates.push(candidate.candidate) : done());
  });
  await connection.setLocalDescription();
  await complete;
  connection.close();
  return { candidates, errors };
}

class Call {
  constructor(matrix, room, id, relays) {
    Object.assign(this, { matrix, room, id, errors: [], offered: [], waiting: [], received: [] });
    this.connection = connect(relays, this.errors);
    this.connection.onicecandidate = ({ candidate }) => this.sendCandidate(candidate ?? { candidate: "", sdpMid: "0" });
    this.connection.ontrack = ({ streams }) => (document.getElementById("other").srcObject = streams[0]);
    this.channel = this.connection.createDataChannel("data", { negotiated: true, id: 0 });
    this.channel.binaryType = "arraybuffer";
    this.channel.onmessage = ({ data }) => this.received.push(new Uint8Array(data));
    this.open = new Promise((done) => (this.channel.onopen = done));
    this.on("m.call.candidates", ({ candidates }) => {
      this.offered.push(...candidates.map(({ candidate }) => candidate).filter(Boolean));
      for (const candidate of candidates) this.connection.addIceCandidate(candidate);
    });
    this.ended = new Promise((done) => this.on("m.call.hangup", done)).then(() => this.connection.close());
  }

  on(type, act) {
    this.matrix.addEventListener(type, ({ detail }) => detail.call_id === this.id && act(detail));
  }

  send(type, content) {
    return this.matrix.send(this.room, type, { call_id: this.id, party_id: this.matrix.device, version: "1", ...content });
  }

  // Several candidates go into one event, because homeservers limit events per second.
  async sendCandidate(candidate) {
    this.waiting.push(candidate);
    if (this.waiting.length > 1) return;
    await this.described;
    await pause(300);
    await this.send("m.call.candidates", { candidates: this.waiting.splice(0) });
  }

  async addMedia() {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: 320, height: 240 } });
    for (const track of stream.getTracks()) this.connection.addTrack(track, stream);
  }

  // The other side needs our description before our candidates: sendCandidate() waits for `described`.
  async sendDescription(type, key, content) {
    let sent;
    this.described = new Promise((done) => (sent = done));
    await this.connection.setLocalDescription();
    await this.send(type, { ...content, [key]: this.connection.localDescription.toJSON() });
    sent();
  }

  static async place(matrix, room, relays) {
    const call = new Call(matrix, room, crypto.randomUUID(), relays);
    await call.addMedia();
    call.on("m.call.answer", ({ answer, party_id }) => {
      call.connection.setRemoteDescription(answer);
      call.send("m.call.select_answer", { selected_party_id: party_id });
    });
    await call.sendDescription("m.call.invite", "offer", { lifetime: 60000 });
    return call;
  }

  static async answer(matrix, room, relays) {
    const { call_id, offer } = await matrix.next("m.call.invite");
    const call = new Call(matrix, room, call_id, relays);
    // Before any other await: the candidates that come next need the remote description.
    await call.connection.setRemoteDescription(offer);
    await call.addMedia();
    await call.sendDescription("m.call.answer", "answer", {});
    return call;
  }

  // Send `size` bytes over the data channel and receive as many; returns the SHA-256 of both.
  async exchange(size) {
    await this.open;
    const sent = new Uint8Array(size);
    for (let at = 0; at < size; at += 16384) {
      crypto.getRandomValues(sent.subarray(at, at + 16384));
      this.channel.send(sent.subarray(at, at + 16384));
    }
    while (this.received.reduce((sum, chunk) => sum + chunk.length, 0) < size) await pause(50);
    const got = new Uint8Array(await new Blob(this.received).arrayBuffer());
    const [own, other] = await Promise.all([sent, got].map((bytes) => crypto.subtle.digest("SHA-256", bytes)));
    return { sent: new Uint8Array(own).toHex(), received: new Uint8Array(other).toHex() };
  }

  // Wait until this many video frames and audio packets have arrived.
  async waitForMedia(frames, packets) {
    for (;;) {
      const { video, audio } = await this.report();
      if (video?.framesDecoded >= frames && audio?.packetsReceived >= packets) return;
      await pause(100);
    }
  }

  async report() {
    const stats = await this.connection.getStats();
    const all = [...stats.values()];
    const inbound = (kind) => all.find((entry) => entry.type === "inbound-rtp" && entry.kind === kind);
    const pair = stats.get(all.find((entry) => entry.type === "transport")?.selectedCandidatePairId);
    return {
      state: this.connection.iceConnectionState,
      local: stats.get(pair?.localCandidateId),
      remote: stats.get(pair?.remoteCandidateId),
      candidates: all.filter((entry) => entry.type === "local-candidate"),
      offered: this.offered,
      video: inbound("video"),
      audio: inbound("audio"),
      errors: this.errors,
      unhandledErrors,
    };
  }

  async hangUp() {
    await this.send("m.call.hangup", { reason: "user_hangup" });
    this.connection.close();
  }
}
