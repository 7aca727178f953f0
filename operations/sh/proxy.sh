#!/bin/sh
# use_proxy: exports http_proxy, https_proxy and no_proxy as the machine has them: in the environment, in /etc/environment (which
# sudo does not read), or else in apt's configuration. One that is set for http only is used for https as well.
# save_proxy FILE: writes them to a file that only root can read, for `.`: a proxy's address may contain a password.
use_proxy() {
  https_proxy=${https_proxy:-${HTTPS_PROXY:-${all_proxy:-${ALL_PROXY:-}}}}
  for name in https_proxy HTTPS_PROXY all_proxy ALL_PROXY; do
    [ "$https_proxy${http_proxy:-}" ] || https_proxy=$(in_environment $name)
  done
  http_proxy=${http_proxy:-$(in_environment http_proxy)}
  if [ ! "$https_proxy$http_proxy" ]; then
    eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy 2>/dev/null || true)"
  fi
  [ "$http_proxy" != DIRECT ] || http_proxy=
  # Explicitly none for https.
  if [ "$https_proxy" = DIRECT ]; then https_proxy=; else https_proxy=${https_proxy:-$http_proxy}; fi
  no_proxy=${no_proxy:-localhost,127.0.0.1,::1},$(in_environment no_proxy)
  export http_proxy https_proxy no_proxy
  [ "$http_proxy" ] || unset http_proxy
  [ "$https_proxy" ] || unset https_proxy
}
in_environment() {
  sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$1=[\"']?([^\"']*)[\"']?[[:space:]]*\$/\2/p" /etc/environment 2>/dev/null | tail -n 1
}
save_proxy() {
  ( umask 077; for name in http_proxy https_proxy no_proxy; do
    eval "value=\${$name:-}"
    [ ! "$value" ] || printf "export %s='%s'\n" "$name" "$(printf %s "$value" | sed "s/'/'\\\\''/g")"
  done >"$1" )
}
