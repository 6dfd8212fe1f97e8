/** Every word of the page, in English and Chinese. `{name}` stands for a value. */
import { keep, recall } from "./dom.js";

const EN = {
  skip_to_jobs: "Skip to jobs", sites: "Sites", now: "Now", theme: "Light or dark",
  other_language: "中文", other_language_label: "切换到中文",
  link_live: "Live", link_connecting: "Connecting …", link_lost: "Connection lost", link_refused: "No longer allowed",
  lost_since: "Connection lost since {time}. What you see is from then; work on the nodes goes on. Trying again …",
  refused: "This page's token is no longer valid. Open it again with a new viewer token: fallow token create --role viewer --name NAME",
  site_connected: "{site}: connected", site_away: "{site}: away", away: "away",
  nodes_lent: "Nodes lent", of_nodes: "of {n} known", devices_useful: "Devices useful now", of_borrowed: "of {n} borrowed",
  harvest: "Harvest", harvest_note: "{useful} of {borrowed} device-hours", harvest_none: "nothing borrowed yet",
  jobs_running: "Jobs running", jobs_note: "{waiting} waiting · {done} done", given_back: "Given back to owners",
  all_in_time: "all in time · slowest {time}", some_late: "{n} late · slowest {time}", none_given_back: "no owner has asked yet",
  capacity: "Capacity", range: "Time range", as_table: "As a table", span_600: "10 min", span_7200: "2 h", span_86400: "1 day", span_604800: "1 week",
  useful: "Useful", rescale: "Rescaling", idle: "Idle", lost: "Lost", reclaims: "Reclaims", borrowed: "Borrowed", time: "Time",
  devices: "devices", no_history: "The first seconds are being recorded …", capacity_label: "Borrowed devices over time: {useful} useful, {rescale} rescaling, {idle} idle now. Arrow keys move through time.",
  nodes: "Nodes", group_by: "Group nodes by", by_site: "Site", by_cohort: "Cohort", cohort: "idle since {time}", not_lent: "Not lent",
  map_label: "{n} nodes: {counts}. Arrow keys move from node to node.", site: "Site", total: "Total",
  n_nodes: "{n} nodes", one_node: "1 node", nodes_and_lent: "{nodes}, {lent} lent",
  code_u: "useful", code_r: "rescaling", code_i: "lent, idle", code_j: "joining", code_s: "spare", code_d: "draining", code_q: "suspect", code_x: "lost", code_b: "owner's",
  devices_used: "{used} of {lent} devices at work", owner_says: "Owner", lent_for: "Lent for", since_report: "Last report", ends_in: "Ends in", back_in: "Back to its owner in", grace: "Grace", runs: "Runs", workers: "{n} workers", one_worker: "1 worker", handed_back: "Given back", times: "{n} times, last in {time}", epoch: "Lease", ago: "{time} ago",
  jobs: "Jobs", job: "Job", state: "State", width: "Width", trend: "Trend", progress: "Progress", more_jobs: "{n} more not shown",
  kind_train: "Train", kind_serve: "Serve", kind_task: "Task",
  state_queued: "Queued", state_starting: "Starting", state_running: "Running", state_parked: "Parked", state_ending: "Ending", state_done: "Done", state_failed: "Failed", state_cancelled: "Cancelled",
  width_label: "{n} workers, between {min} and {max}", width_range: "{min}–{max}", loss: "loss", steps_left: "{time} left", took: "took {time}", running_for: "for {time}", waits_for: "submitted {time} ago", step_of: "{step} of {total}", items: "{n} served",
  role_trainer: "trainers", role_engine: "engines", role_shard: "expert shards", role_runner: "runners",
  details_of: "Details of {name}", rescales: "Rescales", stall: "stood still {time}", steps_again: "{n} steps again", no_rescales: "none yet", scaling: "Measured speed by width", endpoint: "Answers at", output: "Output", submitted: "Submitted", by_user: "by {user}", reclaims_survived: "Workers lost to reclaims", steps_lost: "Steps done again", message: "Message", identity: "Id",
  unplaced: "Waiting for nodes", nothing_unplaced: "Everything has the nodes it asked for.", why: "Why", remedy: "What to do",
  events: "Recent events", no_events: "Nothing has happened yet.", cause: "Cause {id}", same_cause: "Everything with this cause",
  welcome_title: "Put idle nodes to work", welcome_lead: "Fallow borrows nodes while their owners do not need them, trains and serves models there, and gives each back the moment it is asked for. Three commands begin it.",
  step_site: "Start a site", step_site_text: "Once per cluster, on a login or service node.", step_agent: "Lend a node", step_agent_text: "On each node to lend, as an ordinary user. It stays its owner's: a reclaim always wins.", step_submit: "Submit a job", step_submit_text: "An elastic training job that grows and shrinks with the nodes there are.", token_hint: "Tokens come from: {command}", copy: "Copy", copied: "Copied", done: "done",
  one_machine: "All on one machine", one_machine_text: "A scheduler, a site and a few nodes, as real processes, to try it out:", promise_title: "What owners can count on",
  promise_1: "A node is free of Fallow by the owner's deadline, even if scheduler, network or Ray is gone.", promise_2: "No administrator is needed, and nothing stays behind on a node.", promise_3: "A reclaim in good time costs a job no step and no token.",
  no_jobs: "No jobs yet. Nodes are waiting for work:", no_jobs_no_nodes: "No jobs yet.",
  cause_start: "start", cause_grow: "grow", cause_shrink: "shrink", cause_reclaim: "reclaim", cause_loss: "loss", cause_move: "move",
};

const ZH = {
  skip_to_jobs: "跳到作业", sites: "站点", now: "当前", theme: "浅色或深色",
  other_language: "English", other_language_label: "Switch to English",
  link_live: "实时", link_connecting: "正在连接…", link_lost: "连接中断", link_refused: "访问已失效",
  lost_since: "自 {time} 起与调度器失去连接。页面停留在当时的状态，节点上的工作仍在继续。正在重试…",
  refused: "此页面的令牌已失效。请用新的 viewer 令牌重新打开：fallow token create --role viewer --name NAME",
  site_connected: "{site}：已连接", site_away: "{site}：离线", away: "离线",
  nodes_lent: "借出节点", of_nodes: "共 {n} 个节点", devices_useful: "正在有效工作的设备", of_borrowed: "共借用 {n} 个",
  harvest: "收获率", harvest_note: "{borrowed} 设备小时中 {useful} 有效", harvest_none: "尚未借用",
  jobs_running: "运行中的作业", jobs_note: "{waiting} 个等待 · {done} 个完成", given_back: "已归还所有者",
  all_in_time: "全部按时 · 最慢 {time}", some_late: "{n} 次超时 · 最慢 {time}", none_given_back: "所有者尚未收回过节点",
  capacity: "容量", range: "时间范围", as_table: "以表格显示", span_600: "10 分钟", span_7200: "2 小时", span_86400: "1 天", span_604800: "1 周",
  useful: "有效", rescale: "伸缩中", idle: "空闲", lost: "损失", reclaims: "收回", borrowed: "借用", time: "时间",
  devices: "设备", no_history: "正在记录最初几秒…", capacity_label: "借用设备随时间的变化：目前 {useful} 个有效，{rescale} 个伸缩中，{idle} 个空闲。用方向键查看各时刻。",
  nodes: "节点", group_by: "节点分组", by_site: "站点", by_cohort: "同期", cohort: "自 {time} 起空闲", not_lent: "未借出",
  map_label: "{n} 个节点：{counts}。用方向键逐个查看。", site: "站点", total: "合计",
  n_nodes: "{n} 个节点", one_node: "1 个节点", nodes_and_lent: "{nodes}，借出 {lent} 个",
  code_u: "有效工作", code_r: "伸缩中", code_i: "借出但空闲", code_j: "加入中", code_s: "可借", code_d: "腾退中", code_q: "失联待定", code_x: "丢失", code_b: "所有者使用",
  devices_used: "{lent} 个设备中 {used} 个在工作", owner_says: "所有者", lent_for: "已借", since_report: "上次上报", ends_in: "预计结束于", back_in: "归还剩余", grace: "宽限期", runs: "运行", workers: "{n} 个工作进程", one_worker: "1 个工作进程", handed_back: "归还记录", times: "{n} 次，最近一次用时 {time}", epoch: "租约", ago: "{time}前",
  jobs: "作业", job: "作业", state: "状态", width: "宽度", trend: "趋势", progress: "进度", more_jobs: "另有 {n} 个未显示",
  kind_train: "训练", kind_serve: "推理服务", kind_task: "任务",
  state_queued: "排队", state_starting: "启动中", state_running: "运行中", state_parked: "暂停", state_ending: "结束中", state_done: "完成", state_failed: "失败", state_cancelled: "已取消",
  width_label: "{n} 个工作进程，范围 {min} 到 {max}", width_range: "{min}–{max}", loss: "损失值", steps_left: "剩余 {time}", took: "用时 {time}", running_for: "已运行 {time}", waits_for: "{time}前提交", step_of: "{step} / {total}", items: "已服务 {n}",
  role_trainer: "训练进程", role_engine: "推理引擎", role_shard: "专家分片", role_runner: "任务执行器",
  details_of: "{name} 的详情", rescales: "伸缩记录", stall: "停顿 {time}", steps_again: "重做 {n} 步", no_rescales: "暂无", scaling: "各宽度实测速度", endpoint: "服务地址", output: "输出", submitted: "提交于", by_user: "提交者 {user}", reclaims_survived: "因收回失去的工作进程", steps_lost: "重做的步数", message: "消息", identity: "编号",
  unplaced: "等待节点", nothing_unplaced: "所有作业都已得到所需节点。", why: "原因", remedy: "建议",
  events: "最近事件", no_events: "尚无事件。", cause: "起因 {id}", same_cause: "同一起因的所有事件",
  welcome_title: "让空闲节点工作起来", welcome_lead: "Fallow 在所有者不用节点时借用它们来训练和部署模型，并在所有者需要时立即归还。三条命令即可开始。",
  step_site: "启动站点", step_site_text: "每个集群一次，在登录节点或服务节点上运行。", step_agent: "借出节点", step_agent_text: "在每个要借出的节点上以普通用户运行。节点始终属于其所有者，收回永远优先。", step_submit: "提交作业", step_submit_text: "随可用节点伸缩的弹性训练作业。", token_hint: "令牌由此生成：{command}", copy: "复制", copied: "已复制", done: "已完成",
  one_machine: "全部在一台机器上", one_machine_text: "以真实进程启动调度器、站点和几个节点，方便试用：", promise_title: "对所有者的承诺",
  promise_1: "到所有者规定的期限，节点上不再有 Fallow 的任何进程，即使调度器、网络或 Ray 已失效。", promise_2: "不需要管理员，也不在节点上留下任何东西。", promise_3: "提前通知的收回不会让作业损失任何一步或任何一个词元。",
  no_jobs: "还没有作业，节点正等待工作：", no_jobs_no_nodes: "还没有作业。",
  cause_start: "启动", cause_grow: "扩展", cause_shrink: "收缩", cause_reclaim: "收回", cause_loss: "丢失", cause_move: "迁移",
};

const LANGUAGES = { en: EN, zh: ZH };

let language = recall("fallow-language", (navigator.language ?? "en").toLowerCase().startsWith("zh") ? "zh" : "en");
if (!LANGUAGES[language]) language = "en";

/** The page's language as a BCP 47 tag. */
export const locale = () => (language === "zh" ? "zh-CN" : "en-GB");

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  keep("fallow-language", language);
}

/** The words of `key`, with values filled in. */
export function t(key, values = {}) {
  return LANGUAGES[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** The words of `key`, or `fallback` for something that only the scheduler has a word for. */
export const tryT = (key, fallback) => (key in LANGUAGES[language] ? t(key) : fallback);

/** Fill in everything that the document itself marks with data-text and data-label. */
export function translateDocument() {
  document.documentElement.lang = locale();
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
    if (element.tagName === "BUTTON") element.title = t(element.dataset.label);
  }
}
