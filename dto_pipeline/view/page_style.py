"""The stylesheet of HTML pages: one column on a phone, a grid on a desk. Text only."""

STYLE = """
:root{--ink:#21252d;--muted:#5f6774;--rule:#dde1e8;--paper:#fff;--ground:#f3f5f8;--a:#9aa3b2;--b:#2676cc;--warm:#e66126}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
header,main{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.7rem;line-height:1.2;margin:0;overflow-wrap:anywhere}
header p,.note{color:var(--muted);margin:.3rem 0 0;max-width:100ch}
section{margin:28px 0;padding:20px;background:var(--paper);border:1px solid var(--rule);border-radius:12px}
h2{font-size:1.2rem;margin:0 0 .2rem}
h3{font-size:1rem;margin:0}
.note{margin-bottom:14px;font-size:.92rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.tile{background:var(--paper);border:1px solid var(--rule);border-radius:12px;padding:14px 16px;display:flex;
flex-direction:column}
.tile b{font-size:1.7rem;line-height:1.15;font-weight:650}
.tile small{color:var(--muted)}
table{border-collapse:collapse;width:100%;font-size:.92rem;margin:.4rem 0 1.1rem}
th{color:var(--muted);font-weight:500}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th.num,td.num{text-align:right;white-space:nowrap}
td.key{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.85rem;overflow-wrap:anywhere}
td{overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:14px}
.card{border:1px solid var(--rule);border-radius:10px;padding:12px 12px 6px;min-width:0}
.card p{margin:0 0 4px;color:var(--muted);font-size:.85rem}
.chart{display:block;width:100%;height:auto}
.chart text{font-size:11px;fill:var(--muted)}
.chart path{fill:none;stroke-width:1}
.chart .grid{stroke:var(--rule)}
.chart .axis{stroke:var(--muted)}
.chart .bars{fill:var(--b);opacity:.85}
.chart .outline{stroke:var(--a);stroke-width:1.8;fill:var(--a);fill-opacity:.18}
.chart .curve{stroke:var(--warm);stroke-width:1.8}
.chart .mark{stroke:var(--warm);stroke-dasharray:4 3}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;color:var(--muted);font-size:.88rem;margin:0 0 10px}
.legend i{display:inline-block;width:14px;height:10px;margin-right:6px;border-radius:2px;vertical-align:baseline}
i.before{background:#9aa3b244;border:2px solid var(--a)}i.after{background:var(--b)}
i.prior{background:var(--warm);height:3px;vertical-align:middle}
.bar{display:grid;grid-template-columns:minmax(92px,11rem) 1fr minmax(7.5rem,auto);gap:10px;align-items:center;
padding:2px 0;font-size:.92rem}
.bar i{background:var(--ground);border-radius:4px;height:12px;display:block}
.bar u{display:block;background:var(--b);border-radius:4px;height:12px;min-width:2px}
.bar b{font-weight:500;text-align:right;white-space:nowrap}
.scene{border-top:1px solid var(--rule);padding-top:14px;margin-top:18px}
.scene h3{overflow-wrap:anywhere;margin-bottom:8px}
.pictures{display:grid;grid-template-columns:repeat(2,1fr);gap:12px}
figure{margin:0;min-width:0}
img{display:block;width:100%;height:auto;border-radius:6px;border:1px solid var(--rule);background:#fff}
figcaption{color:var(--muted);font-size:.85rem;padding-top:3px}
summary{cursor:pointer;padding:6px 0;color:var(--b)}
pre{overflow-x:auto;background:var(--ground);border-radius:8px;padding:12px;font-size:.85rem;margin:.3rem 0 1rem}
@media (min-width:1000px){.pictures{grid-template-columns:repeat(3,1fr)}.pictures.four{grid-template-columns:
repeat(4,1fr)}.pictures:not(.four) figure:nth-child(3),.pictures:not(.four) figure:nth-child(4){order:1}
.pictures:not(.four) figure:nth-child(6){order:2}}
@media (max-width:640px){header,main{padding:0 12px}section{padding:14px 12px;margin:16px 0}.tiles{
grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}.tile b{font-size:1.35rem}.pictures{grid-template-columns:1fr}
thead{display:none}tr{display:block;padding:8px 0;border-bottom:1px solid var(--rule)}
td,td.num{display:flex;justify-content:space-between;gap:14px;text-align:right;white-space:normal;border:0;
padding:1px 0}
td::before{content:attr(data-name);color:var(--muted);text-align:left;flex:none}
td:first-child{display:block;text-align:left;font-weight:600}td:first-child::before{content:none}
.words tr{display:grid;grid-template-columns:1fr auto 4.2rem;gap:0 12px}.words td{display:block}.words td:nth-child(4)
{grid-column:1/-1;text-align:left;color:var(--muted)}.words td::before{content:none}
.bar{grid-template-columns:6.5rem 1fr auto}}
"""
