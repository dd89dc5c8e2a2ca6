"""The style of the status page, in the colors of the site's error pages."""

CSS = """
:root { color-scheme: light dark; --ink: #22302a; --soft: #5d6b64; --paper: #f6f5f0; --card: #fffefb; --rule: #dedcd2;
  --ok: #2f7d4f; --warn: #a86a00; --bad: #b3372c; --s0: #2f7d4f; --s1: #3a6ea5; --s2: #c98a1b; --s3: #7b5ea7;
  --s4: #2a9d9a; --s5: #b4567a; --s6: #7c8a3a; --s7: #8f8f8a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ece9; --soft: #9fada6; --paper: #161b18; --card: #1d2420;
  --rule: #334039; --ok: #6cc48f; --warn: #e0aa4e; --bad: #f0867a; --s0: #6cc48f; --s1: #7fb0e6; --s2: #e3b457;
  --s3: #b39ddb; --s4: #6fcfca; --s5: #e292b2; --s6: #b5c46a; --s7: #a3a7a2; } }
* { box-sizing: border-box; margin: 0; padding: 0; }
body { max-width: 78rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header { display: grid; gap: .35rem; justify-items: start; }
h1 { font-size: 1.75rem; line-height: 1.2; }
h1 small { color: var(--soft); font-size: 1rem; font-weight: 400; }
h2 { font-size: 1.0625rem; margin: 2.25rem 0 .75rem; }
.soft { color: var(--soft); font-size: .9375rem; }
a { color: var(--ok); } nav { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .9375rem; }
time { color: var(--ink); font-variant-numeric: tabular-nums; }
code, pre { font: .8125rem/1.5 ui-monospace, monospace; }
.verdict { font-weight: 650; padding-left: .75rem; border-left: .25rem solid; }
.old { background: var(--bad); color: var(--paper); padding: .6rem .9rem; border-radius: .4rem; font-weight: 600; }
p.ok, .ok .mark { color: var(--ok); } p.warn, .warn .mark { color: var(--warn); }
  p.bad, .bad .mark { color: var(--bad); }
.checks { list-style: none; background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; }
.checks li { display: grid; grid-template-columns: 1.75rem 7.5rem 1fr; gap: .25rem; padding: .4rem .9rem;
  border-top: 1px solid var(--rule); font-size: .9375rem; }
.checks li:first-child { border-top: 0; }
.checks b { font-weight: 600; } .checks .ok b { font-weight: 400; color: var(--soft); }
.mark { font-weight: 700; }
#ok .checks { columns: 30rem 2; column-gap: 0; padding: .3rem 0; }
#ok li { border: 0; padding: .1rem .9rem; font-size: .8125rem; break-inside: avoid; }
.releases { margin: -.5rem 0 .75rem; }
pre { white-space: pre-wrap; margin: .3rem 0 .2rem; padding: .4rem .6rem; border-radius: .35rem;
  background: var(--paper); }
.graphs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20.5rem, 100%), 1fr)); gap: .9rem; }
figure { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; padding: .75rem .8rem .6rem;
  min-width: 0; }
figcaption { font-size: .8125rem; color: var(--soft); } figcaption b { font-size: .9375rem; color: var(--ink); }
svg { display: block; width: 100%; height: auto; margin: .35rem 0 .25rem; overflow: visible; }
svg text { font: 9.5px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); fill: none; }
.line { fill: none; stroke: var(--c); stroke-width: 1.4; stroke-linejoin: round; stroke-linecap: round; }
.area { fill: var(--c); opacity: .16; } .peak { fill: var(--c); opacity: .14; }
  .stack { fill: var(--c); opacity: .8; }
.limit { stroke: var(--soft); stroke-dasharray: 3 3; fill: none; }
.release path { stroke: var(--ink); opacity: .45; stroke-dasharray: 2 2; }
  .release text { fill: var(--ink); font-size: 8.5px; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
  .s4 { --c: var(--s4); }
.s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); } .sx { --c: var(--bad); }
table { width: 100%; border-collapse: collapse; font-size: .75rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 400; }
  td { text-align: right; width: 5rem; white-space: nowrap; color: var(--soft); }
td:nth-child(2) { color: var(--ink); } tr:first-child td { color: var(--soft); }
i { display: inline-block; width: .6rem; height: .6rem; border-radius: .15rem; background: var(--c);
  margin-right: .4rem; }
@media (max-width: 40rem) { body { padding: 1.25rem .9rem 3rem; } td { width: 4.2rem; }
  .checks li { grid-template-columns: 1.5rem 1fr; } .checks div { grid-column: 2; }
  #ok .mark { display: none; } #ok li { display: block; } #ok div { display: inline; margin-left: .35rem; } }
"""
