// An OpenID Connect provider at https://NAME, for tests: oidc-provider, with its own pages for development.
// Whoever types a user name there is that user. Arguments: name, client ID, file with the client secret, redirect URI.
import fs from "node:fs";
import https from "node:https";
import Provider from "oidc-provider";

const [name, client_id, secretFile, redirect_uri] = process.argv.slice(2);
const provider = new Provider(`https://${name}`, {
  clients: [{ client_id, client_secret: fs.readFileSync(secretFile, "utf8").trim(), redirect_uris: [redirect_uri] }],
  claims: { openid: ["sub"], profile: ["name", "preferred_username"], email: ["email", "email_verified"] },
  findAccount: (_, accountId) => ({
    accountId,
    claims: () => ({
      sub: `id-of-${accountId}`,
      preferred_username: accountId,
      name: `${accountId} of the provider`,
      email: `${accountId}@${name}`,
      email_verified: true,
    }),
  }),
});
https.createServer({ key: fs.readFileSync("key.pem"), cert: fs.readFileSync("cert.pem") }, provider.callback()).listen(443);
