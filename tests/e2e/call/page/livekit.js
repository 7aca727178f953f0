// A participant of calls through LiveKit, as Element Call is one, with LiveKit's own client library (livekit-client.umd.js).
// How it finds LiveKit: https://github.com/matrix-org/matrix-spec-proposals/pull/4143 and 4195.
"use strict";

// All connections of the library's.
const connections = [];
self.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...settings) {
    super(...settings);
    connections.push(this);
  }
};

function load(script) {
  return new Promise((done, failed) => {
    const element = Object.assign(document.createElement("script"), { src: script, onload: done, onerror: failed });
    document.head.append(element);
  });
}

// What a client shows whose user a token names of its homeserver, for a place in the call of a room.
async function askForPlace(matrix, server, room, forged = {}) {
  const found = await (await fetch(`https://${server}/.well-known/matrix/client`)).json();
  const [{ livekit_service_url: service }] = found["org.matrix.msc4143.rtc_foci"];
  const token = await matrix.request("POST", `/user/${matrix.user}/openid/request_token`, {});
  const answer = await fetch(`${service}/sfu/get`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ room, openid_token: { ...token, ...forged }, device_id: matrix.device }),
  });
  return { status: answer.status, ...(await answer.json()) };
}

class Conference {
  static async join({ url, jwt }) {
    if (!self.LivekitClient) await load("livekit-client.umd.js");
    const { Room, RoomEvent, Track } = LivekitClient;
    const conference = new Conference();
    Object.assign(conference, { room: new Room(), events: [] });
    for (const name of ["Reconnecting", "SignalReconnecting", "Reconnected", "Disconnected"])
      conference.room.on(RoomEvent[name], (detail) => conference.events.push(`${name} ${detail ?? ""}`));
    // A browser decodes only what is played.
    conference.room.on(RoomEvent.TrackSubscribed, (track) => track.kind === Track.Kind.Audio && track.attach());
    await conference.room.connect(url, jwt);
    await conference.room.localParticipant.setMicrophoneEnabled(true);
    return conference;
  }

  // Of what it has heard of all others.
  async energy() {
    let energy = 0;
    for (const participant of this.room.remoteParticipants.values())
      for (const { track } of participant.trackPublications.values())
        for (const report of (await track?.receiver?.getStats())?.values() ?? [])
          if (report.type === "inbound-rtp" && report.kind === "audio") energy += report.totalAudioEnergy ?? 0;
    return energy;
  }

  // Wait until it hears something that is said from now on; returns after how many seconds.
  async hears() {
    const [begin, before] = [performance.now(), await this.energy()];
    // After a new connection it counts anew.
    for (let last = before; ; await pause(50)) {
      const energy = await this.energy();
      if (energy > last && last > 0) return (performance.now() - begin) / 1000;
      last = energy;
    }
  }

  // How it is connected to LiveKit: the local candidates in use, and the remote addresses.
  async paths() {
    const paths = [];
    for (const connection of connections.filter((each) => each.connectionState === "connected")) {
      const stats = await connection.getStats();
      for (const { type, selectedCandidatePairId } of stats.values()) {
        const pair = type === "transport" && stats.get(selectedCandidatePairId);
        if (!pair) continue;
        const [local, remote] = [stats.get(pair.localCandidateId), stats.get(pair.remoteCandidateId)];
        paths.push({
          type: local.candidateType,
          protocol: local.relayProtocol ?? local.protocol,
          remote: `${remote.address}:${remote.port}`,
        });
      }
    }
    return paths;
  }

  // What LiveKit tells clients to ask.
  servers() {
    return [...new Set(connections.flatMap((each) => each.getConfiguration().iceServers).flatMap(({ urls }) => urls))];
  }

  leave() {
    return this.room.disconnect();
  }
}
